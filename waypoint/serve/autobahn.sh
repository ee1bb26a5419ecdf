#!/usr/bin/env bash
# Prints the folder of the Autobahn test suite of WebSocket, of a known version. Its Python is 2.7, which no distribution
# has any more: pyenv's is used, or what PYTHON2 names. It is installed into the tree's .cache first when it is not there,
# through pip as this machine has it set up.
#
#   waypoint/serve/autobahn.sh    install if missing, print the interpreter and the folder
set -euo pipefail

suite=autobahntestsuite==25.10.1 # which says the versions of all that it needs, but these
tools="setuptools==44.1.1 wheel==0.37.1"
python=${PYTHON2:-$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python 2>/dev/null | tail -1)}
python=${python:-$(command -v python2.7 || true)}
[ -n "$python" ] && "$python" -m pip --version >/dev/null 2>&1 || {
  echo "autobahn.sh: Python 2.7 with pip is needed: install one by pyenv, or name one in PYTHON2" >&2
  exit 1
}
cache="$(cd "$(dirname "$0")/../.." && pwd)/.cache/autobahn-${suite#*==}-$(uname -m)"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if ! [ -d "$cache/lib" ]; then
  work=$(mktemp -d "$cache/get.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "autobahn.sh: installing $suite (once; two minutes)" >&2
  export PYTHONPATH="$work/prefix/lib/python2.7/site-packages" PYTHONWARNINGS=ignore
  for what in "$tools" "$suite"; do
    # shellcheck disable=SC2086
    "$python" -W ignore -m pip --disable-pip-version-check install --quiet --no-warn-script-location --prefix "$work/prefix" $what >&2
  done
  "$python" -W ignore -c 'import site, sys; site.addsitedir(sys.argv[1]); import autobahntestsuite.wstest' "$work/prefix/lib/python2.7/site-packages" >&2
  mv "$work/prefix/lib/python2.7/site-packages" "$cache/lib"
fi
echo "$python $cache/lib"
