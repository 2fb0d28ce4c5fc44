#!/usr/bin/env bash
# Measures everything on one GPU: benchmarks/gpu.sh [OUT] [FLAGS]
#   OUT    folder for gpu.json, gpu.md, log.txt and the HLO text; default: $OUT
#   FLAGS  see benchmarks/gpu.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python3
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD"
exec "$python" -m benchmarks.gpu "$@"
