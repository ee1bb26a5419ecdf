#!/usr/bin/env bash
# Builds a client of the Workload API with the Rust crate spiffe, which speaks TCP by itself,
# into the tree's .cache, and has e2e/interop.TestMesh try it in a pod, beside py-spiffe and
# go-spiffe. It is not part of CI: it takes cargo (Rust 1.88 or newer), and minutes to build.
#
#   e2e/interop/rustspiffe.sh     build, and run the test; as root
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
command -v cargo >/dev/null || { echo "rustspiffe.sh: cargo is needed, of Rust 1.88 or newer" >&2; exit 1; }
target="$(cd "$here/../.." && pwd)/.cache/rustspiffe"
cargo build --quiet --release --manifest-path "$here/rustspiffe/Cargo.toml" --target-dir "$target"
cd "$here"
exec go test -count=1 -run '^TestMesh$' -v . -rust-client "$target/release/workload_api"
