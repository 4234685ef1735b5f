#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice: asks for the slice and waits for it
# (and again when a spot slice was taken away), copies the commit that is checked
# out, and runs launch/host.sh on all hosts.
# Usage: NAME=pod ZONE=us-east5-a TYPE=v5p-64 bash launch/tpu_pod.sh [--dry-run] \
#   --config=configs/longskywork/recipe.py --workdir=/mnt/shared/run
# --workdir is on a disk that all hosts share (Filestore, or a mounted bucket).
# Also: PROJECT, RUNTIME (v2-alpha-tpuv5), SPOT=1.
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create
. "$(dirname "$0")/cluster.sh"
need NAME ZONE TYPE
tpus=(gcloud compute tpus)
where=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
state() {
  [ -n "$dry_run" ] || "${tpus[@]}" queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}
on_all() { run "${tpus[@]}" tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"; }

while :; do
  while now="$(state)" && [ "$now" != ACTIVE ]; do
    case "$now" in
    "") run "${tpus[@]}" queued-resources create "$NAME" "--node-id=$NAME" "${where[@]}" \
      "--accelerator-type=$TYPE" "--runtime-version=${RUNTIME:-v2-alpha-tpuv5}" ${SPOT:+--spot} ;;
    FAILED | SUSPENDED) run "${tpus[@]}" queued-resources delete "$NAME" "${where[@]}" --force --quiet ;;
    *) sleep "${PAUSE:-30}" ;;
    esac
    [ -z "$dry_run" ] || break
  done
  run git archive --prefix=longctx/ --output=/tmp/longctx.tar.gz HEAD
  run "${tpus[@]}" tpu-vm scp /tmp/longctx.tar.gz "$NAME:" "${where[@]}" --worker=all
  on_all "tar -xzf longctx.tar.gz"
  code=0
  on_all "bash longctx/launch/host.sh tpu $(quoted "$@")" || code=$?
  # A slice that is still there has ended by itself; one that was taken away is
  # asked for again.
  if [ -n "$dry_run" ] || [ "$(state)" = ACTIVE ]; then exit "$code"; fi
done
