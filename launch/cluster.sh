# shellcheck shell=bash
# Sourced by the launchers of clusters: --dry-run, and what must be given.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=""
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi

# run COMMAND...: runs it; with --dry-run prints it, ready to be pasted.
run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

# need VARIABLE...: ends with a line that says which one is not set.
need() {
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || { echo "longctx: set $variable (see the head of $0)" >&2; exit 2; }
  done
}

# quoted WORD...: the words as one line of shell.
quoted() { printf '%q ' "$@"; }
