#!/usr/bin/env bash
# A cluster on this machine, one process an instance; on a machine without accelerators each
# process emulates its own devices.
#   configs/launch/local.sh [MODEL_DIR] [more options of `memserve serve`]
set -eu -o pipefail
model=()
if [[ $# -gt 0 && $1 != -* ]]; then
  model=(--model "$1")
  shift
fi
exec memserve serve --processes --topology "${TOPOLOGY:-1p1d}" --port "${PORT:-50051}" \
  "${model[@]}" "$@"
