#!/usr/bin/env bash
# GPUs under Slurm, one task per GPU:
#   sbatch scripts/slurm.sh CONFIG WORKDIR [FLAG...]
# Explained line by line in docs/pods.md.
#SBATCH --job-name=resnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
: "${2:?usage: sbatch scripts/slurm.sh CONFIG WORKDIR [FLAG...]}"
cd "$SLURM_SUBMIT_DIR"

status=0
srun --nodes="$SLURM_JOB_NUM_NODES" \
  --ntasks="$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))" \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=600 \
  .venv/bin/python main.py --distributed \
  --config="$1" --workdir="$2" "${@:3}" || status=$?
# 0: done; 2: wrong input; 130: Ctrl-C.
[[ ! $status =~ ^(0|2|130)$ ]] || exit "$status"

# The job's comment survives a requeue.
failures=0
if [[ $status -ne 143 ]]; then
  comment=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%k)
  [[ ! $comment =~ ^failures:([0-9]+)$ ]] || failures=${BASH_REMATCH[1]}
  [[ $failures -lt 3 ]] || exit "$status"
  failures=$((failures + 1))
fi
echo "Ended with exit code $status; requeued (failures in a row: $failures)."
scontrol update JobId="$SLURM_JOB_ID" Comment="failures:$failures"
scontrol requeue "$SLURM_JOB_ID" || exit "$status"
