#!/usr/bin/env bash
# Sets up .venv and runs the four LongSkywork stages at laptop size; run it
# again after an interruption and it goes on where it stopped.
# Usage: bash launch/local.sh [--config.field=value ...]
. "$(dirname "$0")/environment.sh"
exec .venv/bin/longctx recipe \
  --config=configs/longskywork/recipe.py:tiny \
  --workdir="${WORKDIR:-runs/longskywork_tiny}" "$@"
