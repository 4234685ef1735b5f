#!/usr/bin/env bash
# Trains on a GKE cluster by xpk: puts this directory into an image, and runs
# launch/host.sh on every host. Pods that end with 75 are started again.
# Usage: NAME=run CLUSTER=pods ZONE=us-east5-a TYPE=v5p-64 bash launch/gke.sh \
#   [--dry-run] --config=configs/longskywork/recipe.py --workdir=/mnt/shared/run
# --workdir is on a volume that all pods mount (xpk storage attach).
# Also: PROJECT, SLICES (1), RESTARTS (100), IMAGE (python:3.12).
# https://github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/workloads.md
. "$(dirname "$0")/cluster.sh"
need NAME CLUSTER ZONE TYPE
run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--zone=$ZONE" \
  ${PROJECT:+"--project=$PROJECT"} "--tpu-type=$TYPE" "--num-slices=${SLICES:-1}" \
  "--base-docker-image=${IMAGE:-python:3.12}" --script-dir=. \
  "--max-restarts=${RESTARTS:-100}" --restart-on-exit-codes=75 \
  --termination-grace-period-seconds=300 \
  "--command=RESTARTS=0 bash launch/host.sh tpu $(quoted "$@")"
