#!/usr/bin/env bash
# Sets up .venv with the [dev] extra and runs the tests.
# Usage: bash launch/test.sh [pytest arguments]     (-m '' runs the slow ones too)
. "$(dirname "$0")/environment.sh" dev
# A file stays on one process, which compiles what its tests share once.
exec .venv/bin/python -m pytest -n 2 --dist=loadfile "$@"
