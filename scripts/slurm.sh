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
srun --kill-on-bad-exit=0 --wait=180 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python main.py --distributed \
  --config="$1" --workdir="$2" "${@:3}" || status=$?
if [[ $status -eq 143 ]]; then
  echo "Stopped by a signal; requeued."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
