# Heddle: every target that a person or CI runs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := heddle heddle-agent heddle-cni heddle-operator
GOTESTSUM := go tool gotestsum --format pkgname-and-test-fails --hide-summary=skipped --
export CGO_ENABLED ?= 0

# Packages whose tests need root, BPF and network namespaces; those that need Kubernetes' own programs
# (built once, about 12 minutes: bin/cluster build), and the rest.
ROOT_PACKAGES = $(shell go list ./bpf/... ./agent/... ./internal/admin/... ./internal/attack/... ./internal/local/... ./cmd/heddle/... ./e2e/... | grep -vE '/e2e/(idle|cluster|controlplane|product)$$|/cmd/heddle/internal/install$$')
CLUSTER_PACKAGES := ./e2e/cluster ./e2e/controlplane ./cmd/heddle/internal/install ./e2e/product
UNIT_PACKAGES = $(shell go list ./... | grep -vE 'heddle/(bpf|agent|internal/(admin|attack|local)|cmd/heddle|e2e)(/|$$)')

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  %-20s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## Install what the tests, the demo and the generators need (idempotent)
	@scripts/deps

.PHONY: build
build: $(BINARIES:%=bin/%) ## Build the programs into bin/

.PHONY: images
images: ## Build the images of both architectures, with an SBOM of each program, into bin/images (reproducible)
	@go run ./manifests/images -version $(VERSION)

.PHONY: always
bin/%: always
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: generate
generate: ## Write all generated code anew (needs clang-16 and protoc: `make deps`)
	go generate ./...

.PHONY: check
check: ## Vet, staticcheck, both architectures build, generated code is up to date
	go vet ./...
	go tool staticcheck ./...
	GOARCH=arm64 go build ./...
	go test -count=1 .
	scripts/generated-is-current

.PHONY: test
test: deps build ## All tests: unit with the race detector, kernel and end-to-end with root (11 min at least)
	@scripts/test

.PHONY: test-unit
test-unit: ## Tests that need no root, with the race detector
	CGO_ENABLED=1 $(GOTESTSUM) -race -timeout 12m . $(UNIT_PACKAGES)
	go test -count=1 -timeout 5m ./internal/hbone/fast # its pairings with the reference engine

.PHONY: test-root
test-root: build ## Tests in the kernel and in network namespaces of their own (root)
	@[ "$$(id -u)" = 0 ] || { echo "make test-root: these tests load BPF and make network namespaces: run as root" >&2; exit 1; }
	CGO_ENABLED=1 $(GOTESTSUM) -race -timeout 15m -p 1 $(ROOT_PACKAGES)

.PHONY: demo
demo: ## Run a small shop in a mesh of two nodes on this machine, and show what it does (root)
	@scripts/deps demo
	@$(MAKE) --no-print-directory build
	@go build -trimpath -o bin/shop ./e2e/demo/shop && go run ./e2e/demo

.PHONY: bench
BENCH ?= full
bench: ## Measure beside no mesh, the reference engine and Envoy; BENCH=quick for a short look that writes nothing (root)
	@scripts/deps bench
	@$(MAKE) --no-print-directory build
	@go build -trimpath -o bin/bench ./e2e/bench && bin/bench $(if $(filter quick,$(BENCH)),-quick,-docs docs) $(BENCHFLAGS)

.PHONY: bench-go
bench-go: ## Go benchmarks with their ceilings of time, allocations and memory
	go test -run '^$$' -bench . -benchmem ./internal/... ./bpf/... ./agent/...

.PHONY: fuzz
FUZZTIME ?= 30s
fuzz: ## Fuzz every parser of outside bytes for FUZZTIME each, or all together for HOURS
	@scripts/fuzz $(if $(HOURS),--hours $(HOURS),$(FUZZTIME))

.PHONY: soak
SOAK ?= 30m
soak: build ## Keep a mesh under churn for SOAK and fail if memory, descriptors or goroutines grow (root)
	HEDDLE_SOAK=$(SOAK) go test -count=1 -v -timeout 24h -run TestSoak ./e2e/soak

# Flags of bin/cluster: CLUSTER="--name blue --workers 3".
CLUSTER ?=
.PHONY: cluster-up
cluster-up: ## Bring up real Kubernetes on this machine, two workers; 12 min the first time, then 20 s (root)
	@scripts/deps cluster
	@go build -trimpath -o bin/cluster ./e2e/cluster/cmd/cluster && bin/cluster up $(CLUSTER)

.PHONY: cluster-status
cluster-status: ## Show how that cluster fares
	@go build -trimpath -o bin/cluster ./e2e/cluster/cmd/cluster && bin/cluster status $(CLUSTER)

.PHONY: cluster-down
cluster-down: ## Take that cluster down; nothing is left
	@go build -trimpath -o bin/cluster ./e2e/cluster/cmd/cluster && bin/cluster down $(CLUSTER)

.PHONY: e2e-cluster
e2e-cluster: ## Test whole clusters, the operator and `heddle install` on a real API server (root; first time 12 min)
	@scripts/deps cluster
	@go build -trimpath -o bin/cluster ./e2e/cluster/cmd/cluster && bin/cluster build >/dev/null
	$(GOTESTSUM) -count=1 -timeout 15m -p 1 $(CLUSTER_PACKAGES)

.PHONY: e2e
e2e: deps build ## Everything end to end: meshes in network namespaces, then whole clusters (root; first time 12 min more)
	$(GOTESTSUM) -count=1 -timeout 15m -p 1 $$(go list ./e2e/... | grep -vE '/e2e/(idle|cluster|controlplane|product)$$')
	@$(MAKE) --no-print-directory e2e-cluster

# NODES:PODS,... of `make scale`; the last takes an hour of two cores and 4 GB.
SCALE ?= 100:1000,500:5000,1000:10000,2000:20000,500:50000
.PHONY: scale
scale: ## Measure a control plane at the sizes of SCALE, and print the table of docs/scale.md
	HEDDLE_SCALE=$(SCALE) go test -count=1 -v -timeout 4h -run TestScale ./e2e/scale

.PHONY: kernel-matrix
kernel-matrix: ## Load all BPF and run the redirect and gate tests on Debian's 6.1 and 6.12 kernels, in qemu
	@scripts/deps
	@e2e/kernels/run.sh -j

.PHONY: chaos
KILLS ?= 100
chaos: build ## Kill an agent KILLS times under traffic and count plaintext bytes on the wire (root)
	HEDDLE_CHAOS_KILLS=$(KILLS) $(GOTESTSUM) -count=1 -timeout 60m -run Chaos ./e2e/chaos

.PHONY: handover
HANDOVERS ?= 20
handover: ## Replace agents HANDOVERS times under 2,000 long-lived connections and 2,000 requests/s (root)
	HEDDLE_HANDOVERS=$(HANDOVERS) HEDDLE_HANDOVER_CONNECTIONS=2000 HEDDLE_HANDOVER_RATE=2000 \
	  go test -count=1 -timeout 20m -v -run HandOver ./e2e/handover

.PHONY: upgrades
UPGRADES ?= 5
upgrades: ## Upgrade the DaemonSet UPGRADES times under traffic on real Kubernetes, and count what is lost (root)
	@scripts/deps cluster
	HEDDLE_UPGRADES=$(UPGRADES) go test -count=1 -timeout 30m -v -run TestProduct ./e2e/product

.PHONY: ci
ci: ## All that must hold before a change lands
	@scripts/ci

.PHONY: clean
clean: ## Remove what the targets built; .cache/ keeps downloads
	rm -rf bin
