#!/usr/bin/env bash
# Trains on GPUs by Slurm: installs into this directory, which the nodes share,
# and queues a job of one process a GPU. Slurm asks it to stop three minutes
# before the job's time is over; it saves, and the job is queued again.
# Usage: NAME=run NODES=4 GPUS=8 bash launch/slurm.sh [--dry-run] \
#   --config=configs/longskywork/recipe.py --workdir=/shared/run
# NODES is how many, GPUS how many each has. Also: SBATCH, more flags of sbatch.
# https://slurm.schedmd.com/sbatch.html
. "$(dirname "$0")/cluster.sh"
need NAME NODES GPUS
[ -n "$dry_run" ] || (. launch/environment.sh cuda)
read -ra more <<<"${SBATCH:-}"
on_all="srun --kill-on-bad-exit=0 bash launch/host.sh cuda $(quoted "$@")"
run sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" \
  "--gpus-per-node=$GPUS" --requeue --signal=TERM@180 --open-mode=append \
  "${more[@]}" \
  "--wrap=$on_all || { code=\$?; [ \$code -ne 75 ] || scontrol requeue \$SLURM_JOB_ID; exit \$code; }"
