#!/usr/bin/env bash
# Builds SPIRE's server and agent from its Go module, once, into the tree's .cache, has them issue for a mesh
# (e2e/rotation.TestTrueSPIRE...), and be the trust domain that a mesh is federated with (e2e.TestTrueSPIREFederates,
# which needs root). "--build" only builds.
#
# The module is built as the main module, in a copy, with its own go.sum. Its lists of built-in plugins lose those that
# the test has no use for (clouds, Kubernetes, TPMs), which are more than half of what there is to compile; nothing else is changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "${1:-}" = --build ] || [ "$(id -u)" = 0 ] || { echo "spire.sh: the test makes network namespaces and loads BPF: run as root" >&2; exit 1; }
version=v1.13.3
# How they are built is this file's, and for what, Go's.
programs=$PWD/.cache/spire-$version-$(sha256sum e2e/rotation/spire.sh | cut -c1-16)-$(go env GOARCH)
mkdir -p "$programs"
exec 9>"$programs/lock"
flock 9
if ! [ -x "$programs/spire-server" ] || ! [ -x "$programs/spire-agent" ]; then
  work=$(mktemp -d "$programs/build.XXXXXX")
  trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
  (cd / && GOFLAGS=-mod=mod go mod download -json "github.com/spiffe/spire@$version") >"$work/module.json" ||
    { echo "spire.sh: github.com/spiffe/spire@$version cannot be had: $(sed -n 's/^\t"Error": "\(.*\)",\{0,1\}$/\1/p' "$work/module.json")" >&2; exit 1; }
  module=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' "$work/module.json")
  cp -r "$module" "$work/source" && chmod -R u+w "$work/source"
  sed -i -E '/^\t([a-z0-9]+ )?"github.com\/spiffe\/spire\/pkg\/(server|agent)\/plugin\/[a-z]+\/[a-z0-9]+"$/{/\/(disk|memory|jointoken|unix|uniqueid)"/!d}
    /^\t\t[a-z0-9]+\.BuiltIn\(\),$/{/\t(disk|memory|jointoken|unix)\./!d}' "$work/source"/pkg/{server,agent}/catalog/*.go
  echo "building SPIRE $version (once; about two minutes of one core)"
  # SQLite, where the server keeps its entries, is C.
  for program in spire-server spire-agent; do
    (cd "$work/source" && GOWORK=off GOFLAGS=-trimpath CGO_ENABLED=1 go build -buildvcs=false -ldflags "-s -w" -o "$work/$program" "./cmd/$program")
  done
  mv "$work/spire-server" "$work/spire-agent" "$programs/"
  chmod -R u+w "$work" && rm -rf "$work"
  trap - EXIT
fi
flock -u 9
exec 9>&-
if [ "${1:-}" = --build ]; then exit; fi
HEDDLE_SPIRE=$programs exec go tool gotestsum --format testname -- -tags spire -count=1 -timeout 15m -p 1 -run TestTrueSPIRE ./e2e/rotation ./e2e
