#!/usr/bin/env bash
# TPU slices under GKE with xpk:  scripts/gke_xpk.sh create|run|list|stop|delete
# Explained line by line in docs/pods.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PROJECT:?of Google Cloud}" "${ZONE:?such as us-west4-a}" "${CLUSTER:?}"
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER")
type=(--tpu-type="${TYPE:-v5litepod-256}" --num-slices=1)
read -ra dry <<< "${DRY_RUN:+--dry-run}"

case "${1:-}" in
  create) xpk cluster create "${where[@]}" "${type[@]}" --spot "${dry[@]}" ;;
  run)
    : "${NAME:?of the workload}" "${IMAGE:?of scripts/Dockerfile, pushed}"
    : "${CONFIG:?such as configs/resnet50.py}" "${WORKDIR:?on a shared disk}"
    xpk workload create "${where[@]}" "${type[@]}" --workload="$NAME" \
      --docker-image="$IMAGE" --spot \
      --max-restarts=20 --restart-on-exit-codes=1 \
      --termination-grace-period-seconds=60 "${dry[@]}" \
      --command="exec python main.py --distributed --config=$CONFIG \
      --workdir=$WORKDIR ${FLAGS:-}"
    ;;
  list) xpk workload list "${where[@]}" "${dry[@]}" ;;
  stop) xpk workload delete "${where[@]}" --workload="${NAME:?}" "${dry[@]}" ;;
  delete) xpk cluster delete "${where[@]}" "${dry[@]}" ;;
  *)
    echo "usage: $0 create|run|list|stop|delete" >&2
    exit 2
    ;;
esac
