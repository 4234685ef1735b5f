#!/usr/bin/env bash
# What the launchers start on every host: installs, trains, and trains again
# after exit code 75, stopped in order to go on, and after a signal.
# Usage: bash launch/host.sh EXTRA [flags of longctx recipe]    (EXTRA: tpu, cuda)
. "$(dirname "$0")/environment.sh" "$1"
shift
child="" stopping=""
# Kubernetes tells this script alone that the machine goes away.
trap 'stopping=1; kill -TERM "$child" 2>/dev/null' TERM
for ((tries = 0; tries <= ${RESTARTS:-100}; tries++)); do
  ((tries == 0)) || { echo "longctx: starting again ($tries)" >&2; sleep "${PAUSE:-10}"; }
  .venv/bin/longctx recipe "$@" &
  child=$!
  # A signal ends `wait`, not the child.
  until code=0; wait "$child" || code=$?; ! kill -0 "$child" 2>/dev/null; do :; done
  if ((code != 75 && code < 128)) || [ -n "$stopping" ]; then exit "$code"; fi
done
exit 75
