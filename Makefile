# Heddle: every target that a person or CI runs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := heddle heddle-agent heddle-cni heddle-operator heddle-waypoint
GOTESTSUM := go tool gotestsum --format pkgname-and-test-fails --hide-summary=skipped --
# Tests that failed, if they are few, run once more, alone; what was lost stays lost. They are not vetted as they are
# compiled: `make check` does that once, for all.
GOTESTSUM_AGAIN = scripts/again "$(1)" -vet=off
export CGO_ENABLED ?= 0
# The standard library is part of the programs: they are built with the one whose mends are known, whatever Go is
# installed. The Go module proxy has it.
export GOTOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)
# One form of each compiled package for the programs, the tests and the analysers.
export GOFLAGS := $(filter-out -trimpath,$(GOFLAGS)) -trimpath

# Packages whose tests need root, BPF and network namespaces; those that need Kubernetes' own programs
# (built once, about 12 minutes: bin/cluster build), and the rest.
ROOT_PACKAGES = $(shell go list ./bpf/... ./agent/... ./internal/admin/... ./internal/attack/... ./internal/local/... ./cmd/heddle/... ./e2e/... | grep -vE '/e2e/(idle|cluster|controlplane|product)$$|/cmd/heddle/internal/install$$')
CLUSTER_PACKAGES := ./e2e/cluster ./e2e/controlplane ./cmd/heddle/internal/install ./e2e/product
# Those that take minutes begin first, so that nobody waits for the last of them alone.
UNIT_PACKAGES = ./waypoint/serve ./operator ./internal/hbone/fast $(shell go list ./... | grep -vE 'heddle/(bpf|agent|internal/(admin|attack|local)|cmd/heddle|e2e)(/|$$)|heddle/(waypoint/serve|operator|internal/hbone/fast)$$')

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  %-20s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## Install what the tests, the demo and the generators need (idempotent)
	@scripts/deps

.PHONY: build
build: $(BINARIES:%=bin/%) ## Build the programs into bin/

.PHONY: images
images: ## Build the images of both architectures, with SBOMs, into bin/images (reproducible); PUSH=registry.example/heddle pushes them there
	@go run ./manifests/images -version $(VERSION) $(if $(PUSH),-push -registry $(PUSH))

.PHONY: always
bin/%: always
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: generate
generate: ## Write all generated code anew (needs clang-16 and protoc: `make deps`)
	go generate ./...

.PHONY: check
check: ## Vet, staticcheck, both architectures build, generated code is up to date
	go vet ./...
	go vet -tags skew ./e2e/product
	go vet -tags conformance ./e2e/product
	go vet -tags spire ./e2e ./e2e/rotation
	go vet -tags autobahn ./waypoint/serve
	go tool staticcheck ./...
	GOARCH=arm64 go build ./...
	go test -count=1 .
	scripts/generated-is-current

.PHONY: test
test: deps build ## All tests: unit with the race detector, kernel and end-to-end with root (11 min at least)
	@scripts/test

.PHONY: test-unit
test-unit: ## Tests that need no root, with the race detector
	CGO_ENABLED=1 $(call GOTESTSUM_AGAIN,$(UNIT_PACKAGES)) -race -timeout 12m
	go test -count=1 -timeout 12m ./internal/hbone/fast # its pairings with the reference engine
	go test -count=1 -timeout 12m -run 'Cost$$' ./internal/mesh ./internal/mesh/route ./operator/issuing ./waypoint/http2 # what a decision, a match and a certificate cost

.PHONY: test-root
test-root: build ## Tests in the kernel and in network namespaces of their own (root)
	@[ "$$(id -u)" = 0 ] || { echo "make test-root: these tests load BPF and make network namespaces: run as root" >&2; exit 1; }
	CGO_ENABLED=1 $(call GOTESTSUM_AGAIN,$(ROOT_PACKAGES)) -race -timeout 15m -p 2

.PHONY: demo
demo: ## Run a small shop in a mesh of two nodes on this machine, and show what it does (root)
	@scripts/deps demo
	@$(MAKE) --no-print-directory build
	@go build -trimpath -o bin/shop ./e2e/demo/shop && go run ./e2e/demo

.PHONY: bench
BENCH ?= full
bench: ## Measure beside no mesh, the reference engine and Envoy, then the waypoint; BENCH=quick for a short look that writes nothing; CONGESTION=cubic for docs/benchmarks-cubic.md, 7 min (root)
	@scripts/deps bench
	@$(MAKE) --no-print-directory build
	@go build -trimpath -o bin/bench ./e2e/bench && bin/bench $(if $(filter quick,$(BENCH)),-quick,-docs docs) $(if $(CONGESTION),-congestion $(CONGESTION)) $(BENCHFLAGS)
	$(if $(BENCHFLAGS)$(CONGESTION),,@$(MAKE) --no-print-directory bench-waypoint)

.PHONY: bench-waypoint
bench-waypoint: ## Measure the waypoint beside Envoy as the same proxy, 8 min; BENCH=quick for a short look that writes nothing
	@scripts/deps bench
	@$(MAKE) --no-print-directory build
	@go build -trimpath -o bin/bench-waypoint ./e2e/bench/waypoint && bin/bench-waypoint $(if $(filter quick,$(BENCH)),-quick,-docs docs) $(BENCHFLAGS)

# This machine is idle: what is timed has its own bounds, not those of a CI that is busy.
bench-go: export HEDDLE_COST = 1
.PHONY: bench-go
bench-go: ## Go benchmarks, and the tests of their ceilings of allocations and memory, which fail
	go test -count=1 -run 'Allocat|Cost' -bench . -benchmem ./internal/... ./bpf/... ./agent/... ./operator/... ./waypoint/... ./cmd/...

.PHONY: fuzz
FUZZTIME ?= 30s
fuzz: ## Fuzz every parser of outside bytes for FUZZTIME each, or all together for HOURS
	@scripts/fuzz $(if $(HOURS),--hours $(HOURS),$(FUZZTIME))

.PHONY: fuzz-programs
fuzz-programs: ## Build what the fuzz targets are made of into Go's cache, as CI does beside its tests
	@scripts/fuzz --build

.PHONY: soak
SOAK ?= 30m
soak: build ## Keep a mesh under churn for SOAK and fail if memory, descriptors or goroutines grow (root)
	HEDDLE_SOAK=$(SOAK) go test -count=1 -v -timeout 24h -run TestSoak ./e2e/soak

.PHONY: autobahn
autobahn: ## Run the Autobahn suite of WebSocket directly and through a waypoint, and compare (needs Python 2.7; 10 min)
	go test -tags autobahn -count=1 -v -timeout 60m -run 'TestAutobahn$$' ./waypoint/serve

.PHONY: http-differences
http-differences: deps ## Run the corpus of HTTP ambiguities through nginx and Envoy, and write what they read otherwise to docs/http.md
	go test -count=1 -v -run TestDifferences ./e2e/smuggling -write

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

.PHONY: cluster-programs
cluster-programs: ## Build the programs of clusters, Kubernetes' own among them, kube-router and Helm (16 min the first time)
	@scripts/deps cluster
	@go build -trimpath -o bin/cluster ./e2e/cluster/cmd/cluster && bin/cluster build --enforcer
	@cd e2e/helm && go build -trimpath -ldflags '-s -w' -o ../../.cache/helm/helm helm.sh/helm/v3/cmd/helm

.PHONY: e2e-cluster
e2e-cluster: cluster-programs ## Test whole clusters, the operator and `heddle install` on a real API server (root; first time 16 min)
	$(call GOTESTSUM_AGAIN,$(CLUSTER_PACKAGES)) -count=1 -timeout 35m -p 2 -parallel 4

.PHONY: e2e
e2e: deps build ## Everything end to end: meshes in network namespaces, then whole clusters (root; first time 16 min more)
	$(GOTESTSUM) -count=1 -timeout 15m -p 1 $$(go list ./e2e/... | grep -vE '/e2e/(idle|cluster|controlplane|product)$$')
	@$(MAKE) --no-print-directory e2e-cluster
	@$(MAKE) --no-print-directory e2e-gateway

# NODES:PODS,... of `make scale`. 5000:50000 streams 87 GB, and takes 2 GB.
SCALE ?= 100:1000,500:5000,1000:10000,2000:20000,500:50000
.PHONY: scale
scale: ## Measure a control plane at the sizes of SCALE, and print the table of docs/scale.md
	HEDDLE_SCALE=$(SCALE) go test -count=1 -v -timeout 4h -run TestScale ./e2e/scale

CHANGES ?= 500
.PHONY: enforcement
enforcement: ## Change policies and endpoints of 10,000 workloads CHANGES times each; at p99 all nodes must decide by it within a second
	HEDDLE_CHANGES=$(CHANGES) go test -count=1 -v -timeout 2h -run TestChangeToEnforcement ./operator/cluster

# KERNEL_PACKAGES=./bpf is what CI has time for.
KERNEL_PACKAGES ?= ./bpf ./agent/podnet
KERNEL_ARCH ?= amd64
.PHONY: kernel-matrix
kernel-matrix: ## Load all BPF and run the redirect, gate and enrollment tests on Debian's 6.1 and 6.12 kernels, in qemu; KERNEL_ARCH=arm64 for arm64's
	@scripts/deps
	@ARCH=$(KERNEL_ARCH) e2e/kernels/run.sh -j $(KERNEL_PACKAGES)

AGREEMENT ?= 1000000
.PHONY: prove
prove: ## Have kernel, agent, waypoint, evaluator and documentation decide about AGREEMENT generated connections and as many requests; they must agree (root)
	HEDDLE_AGREEMENT_CONNECTIONS=$(AGREEMENT) go test -count=1 -v -timeout 4h -run 'Agreement$$' ./e2e/agreement

.PHONY: chaos
KILLS ?= 1000
REBOOTS ?= 20
chaos: build ## Kill agents KILLS times, and reboot a node of a cluster REBOOTS times, under traffic; count plaintext bytes on the wire (root)
	@scripts/deps cluster
	HEDDLE_CHAOS_KILLS=$(KILLS) go test -count=1 -timeout 4h -v -run Chaos ./e2e/chaos
	HEDDLE_REBOOT_CONTROL=1 HEDDLE_REBOOTS=$(REBOOTS) go test -count=1 -timeout 2h -v -run 'TestProduct/^reboot$$' ./e2e/product

.PHONY: rotation
CONNECTIONS ?= 100000
rotation: ## Rotate root and intermediate, with restarts and an abort, under CONNECTIONS connections; none may fail
	ROTATION_CONNECTIONS=$(CONNECTIONS) go test -count=1 -timeout 60m -v ./e2e/rotation

.PHONY: spire
spire: ## Have SPIRE's own programs issue for a mesh, replace their root and go away, and federate with one; builds them the first time (root)
	@scripts/deps
	@e2e/rotation/spire.sh

.PHONY: spire-programs
spire-programs: ## Build SPIRE's programs, once
	@e2e/rotation/spire.sh --build

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

.PHONY: rolls
ROLLS ?= 20
rolls: ## Restart a server ROLLS times that is gone a second after SIGTERM, under 5,000 requests each; none may be lost (root)
	@scripts/deps cluster
	HEDDLE_ROLLS=$(ROLLS) go test -count=1 -timeout 60m -v -run 'TestProduct/^rolls$$' ./e2e/product

.PHONY: dual-stack
dual-stack: ## Run a short life of Heddle on clusters of IPv4 and IPv6, with either as the primary family, and of IPv6 alone (root; 6 min)
	@scripts/deps cluster
	HEDDLE_DUAL_STACK=1 go test -count=1 -timeout 30m -v -run 'TestDualStack$$' ./e2e/product

.PHONY: scenarios
scenarios: ## Run every scenario of docs/scenarios.md on real Kubernetes; `make test` runs them in network namespaces (root)
	@scripts/deps cluster
	go test -count=1 -timeout 30m -parallel 4 -v -run 'TestProduct/^scenarios$$' ./e2e/product

.PHONY: gateway-conformance
gateway-conformance: ## Run the Gateway API's conformance suite for meshes on a cluster, and write its report to docs/conformance (root; builds the suite the first time)
	@scripts/deps cluster
	HEDDLE_CONFORMANCE="$$PWD/docs/conformance" HEDDLE_CONFORMANCE_VERSION='$(VERSION)' go test -tags conformance -count=1 -timeout 60m -v -run 'TestGatewayAPI$$' ./e2e/product

.PHONY: e2e-gateway
e2e-gateway: ## Run the same suite at 20 successes in a row alone, and write nothing (root; 3 min, the first time 6 more)
	@scripts/deps cluster
	$(call GOTESTSUM_AGAIN,./e2e/product) -tags conformance -count=1 -timeout 40m -run 'TestGatewayAPI$$'

.PHONY: outage
OUTAGE ?= 1h
outage: ## Run without an operator for OUTAGE on real Kubernetes: traffic and agents' restarts go on (root)
	@scripts/deps cluster
	HEDDLE_OUTAGE=$(OUTAGE) go test -count=1 -timeout 24h -v -run 'TestProduct/^faults$$/^the_operator_is_gone$$' ./e2e/product

# The version before this one, as git has it: before there is any, the first revision with waypoints.
SKEW_FROM ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo 7431e38)
.PHONY: skew
skew: ## Upgrade from the git revision SKEW_FROM to this checkout and back, one program after the other in any order, under traffic (root)
	@scripts/deps cluster
	@folder=.cache/skew/$$(git rev-parse --short '$(SKEW_FROM)^{commit}') && rm -rf "$$folder" && mkdir -p "$$folder" && git archive '$(SKEW_FROM)' | tar -x -C "$$folder" && \
	  HEDDLE_SKEW="$$PWD/$$folder" go test -tags skew -count=1 -timeout 60m -v -run 'Test(Skew|AnyOrder)$$' ./e2e/product

# network: all tests that a cluster of one machine can run; telling: about thirty of them, in a quarter of an hour.
K8S_NETWORK ?= network
.PHONY: k8s-network
k8s-network: ## Run Kubernetes' own network tests outside the mesh and inside it, and compare (root; an hour and more)
	@scripts/deps k8snet
	go run ./e2e/k8snet -tests $(K8S_NETWORK) $(K8S_NETWORK_FLAGS)

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what the programs are built of (HEDDLE_VULN_SCAN=symbol says how they are reached)
	@scripts/vulncheck

.PHONY: ci
ci: ## All that must hold before a change lands
	@scripts/ci

.PHONY: clean
clean: ## Remove what the targets built; .cache/ keeps downloads
	rm -rf bin
