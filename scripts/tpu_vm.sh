#!/usr/bin/env bash
# A TPU slice on Google Cloud:
#   scripts/tpu_vm.sh create|install|run|logs|stop|delete
# Explained line by line in docs/pods.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${NAME:?of the slice, such as resnet}" "${ZONE:?such as us-west4-a}"
tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
on_all_workers() { tpu ssh --worker=all --command="set -e; cd resnet; $1"; }

case "${1:-}" in
  create)
    tpu create --accelerator-type="${TYPE:-v5litepod-256}" \
      --version="${VERSION:-v2-alpha-tpuv5-lite}" --spot
    ;;
  install)
    code=$(mktemp -d)/resnet.tar.gz
    git archive --prefix=resnet/ --output="$code" HEAD
    gcloud compute tpus tpu-vm scp "$code" "$NAME:" --zone="$ZONE" --worker=all
    tpu ssh --worker=all --command="tar xzf resnet.tar.gz"
    on_all_workers "python3 -m pip install --quiet uv
      python3 -m uv python install --quiet 3.12
      make PYTHON=\"\$(python3 -m uv python find 3.12)\" .venv/installed
      .venv/bin/pip install --quiet 'jax[tpu]'"
    ;;
  run)
    : "${CONFIG:?such as configs/resnet50.py}" "${WORKDIR:?on a shared disk}"
    on_all_workers "nohup .venv/bin/python main.py --distributed \
      --config=$CONFIG --workdir=$WORKDIR ${FLAGS:-} \
      > run.log 2>&1 < /dev/null & echo \$! > run.pid"
    ;;
  logs) tpu ssh --worker=0 --command="tail -n 100 -f resnet/run.log" ;;
  stop) on_all_workers "kill -TERM \$(cat run.pid)" ;;
  delete) tpu delete --quiet ;;
  *)
    echo "usage: NAME=... ZONE=... $0 create|install|run|logs|stop|delete" >&2
    exit 2
    ;;
esac
