#!/bin/bash
# A SLURM array: task I of 8 renders shard I/8 on one GPU.
#
#   sbatch docs/scaling/slurm-array.sh
#
# A task that failed, alone:   sbatch --array=3 docs/scaling/slurm-array.sh
# At most four at one time:    sbatch --array=1-8%4 docs/scaling/slurm-array.sh
#
#SBATCH --job-name=flowblend
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --gres=gpu:1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=flowblend-%A-%a.log
#SBATCH --signal=TERM@300
set -euo pipefail

# Not SLURM_ARRAY_TASK_COUNT: a task that is sent again alone is still one of eight.
SHARDS=8

RECIPE=${RECIPE:-$SLURM_SUBMIT_DIR/harbour.toml}
OUT=${OUT:-$SLURM_SUBMIT_DIR/clips/harbour}

# srun, so that the signal before the end of the time reaches the render: it stops after the present
# step and stores the job's state, and the same task goes on from there when it is sent again.
srun flowblend render "$RECIPE" --out "$OUT" --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" --checkpoint-every 10
