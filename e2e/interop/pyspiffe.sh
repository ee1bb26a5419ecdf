#!/usr/bin/env bash
# Prints the folder of py-spiffe of a known version, for PYTHONPATH: a client of the
# SPIFFE Workload API that shares no code with go-spiffe. It is installed into the tree's
# .cache first when it is not there, through pip as this machine has it set up.
#
#   e2e/interop/pyspiffe.sh       install if missing, print the folder
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
command -v python3 >/dev/null || { echo "pyspiffe.sh: python3 with pip is needed to get py-spiffe: apt-get install python3-pip" >&2; exit 1; }
# Some of it is compiled, for one version of Python.
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sum=$(sha256sum "$here/pyspiffe.txt" | cut -c1-16)
cache="$(cd "$here/../.." && pwd)/.cache/pyspiffe-$sum-$(uname -m)-$version"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if ! [ -d "$cache/lib" ]; then
  work=$(mktemp -d "$cache/get.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip --disable-pip-version-check install --root-user-action ignore --quiet --no-deps --only-binary :all: --require-hashes \
    --requirement "$here/pyspiffe.txt" --target "$work/lib" >&2
  PYTHONPATH="$work/lib" python3 -c 'import spiffe' >&2
  mv "$work/lib" "$cache/lib"
fi
echo "$cache/lib"
