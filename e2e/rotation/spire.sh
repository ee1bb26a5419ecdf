#!/usr/bin/env bash
# Builds SPIRE's server and agent from its Go module, once, into the tree's .cache, and has them issue for a mesh
# (e2e/rotation.TestTrueSPIRE...).
#
# The module is built as the main module, in a copy, with its own go.sum. Its lists of built-in plugins lose those that
# the test has no use for (clouds, Kubernetes, TPMs), which are more than half of what there is to compile; nothing else is changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=v1.13.3
programs=$PWD/.cache/spire-$version
for program in spire-server spire-agent; do
  [ -x "$programs/$program" ] && continue
  source=$programs/source
  if [ ! -f "$source/go.mod" ]; then
    module=$(cd / && GOFLAGS=-mod=mod go mod download -json "github.com/spiffe/spire@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    [ -d "$module" ] || { echo "spire.sh: github.com/spiffe/spire@$version cannot be had" >&2; exit 1; }
    mkdir -p "$programs" && rm -rf "$source.new"
    cp -r "$module" "$source.new" && chmod -R u+w "$source.new"
    sed -i -E '/^\t([a-z0-9]+ )?"github.com\/spiffe\/spire\/pkg\/(server|agent)\/plugin\/[a-z]+\/[a-z0-9]+"$/{/\/(disk|memory|jointoken|unix|uniqueid)"/!d}
      /^\t\t[a-z0-9]+\.BuiltIn\(\),$/{/\t(disk|memory|jointoken|unix)\./!d}' "$source.new"/pkg/{server,agent}/catalog/*.go
    mv "$source.new" "$source"
  fi
  echo "building $program $version (once; about two minutes of one core for both)"
  # SQLite, where the server keeps its entries, is C.
  (cd "$source" && GOWORK=off GOFLAGS=-trimpath CGO_ENABLED=1 go build -buildvcs=false -ldflags "-s -w" -o "$programs/$program.new" "./cmd/$program")
  mv "$programs/$program.new" "$programs/$program"
done
rm -rf "$programs/source"
HEDDLE_SPIRE=$programs exec go tool gotestsum --format testname -- -tags spire -count=1 -timeout 10m -run TestTrueSPIRE ./e2e/rotation
