# shellcheck shell=bash
# Sourced by the scripts beside it: finds a Python, makes .venv, installs.
# Usage: . launch/environment.sh [extras]     (extras: dev, ...)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=""
for candidate in "${PYTHON:-python3}" python3.12 python3.11 python3 python; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
if [ -z "$python" ]; then
  echo "longctx: needs Python 3.11 or newer on the PATH (or PYTHON=/path/to/it)" >&2
  exit 1
fi

extras="${1:-}"
if ! [ -x .venv/bin/python ]; then
  "$python" -m venv .venv || {
    echo "longctx: could not make .venv; on Debian: apt-get install python3-venv" >&2
    rm -rf .venv
    exit 1
  }
fi
# Install again only when what decides the installation has changed.
stamp=".venv/installed-${extras:-base}"
if ! [ -f "$stamp" ] || [ setup.py -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  echo "longctx: installing into .venv (about a minute)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}" || {
    echo "longctx: pip could not install the package: see its message above; it needs PyPI" >&2
    exit 1
  }
  touch "$stamp"
fi
