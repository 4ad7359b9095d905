#!/usr/bin/env bash
# Prefill and decode on the GPUs of this machine.
#   configs/launch/gpu.sh MODEL_DIR [more options of `memserve serve`]
# One GPU: both instances in one process share it, KV moves without leaving it. Two or more: one
# process and TP GPUs (default 1) an instance.
set -eu -o pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: $0 MODEL_DIR [options]" >&2
  exit 2
fi
model=$1
shift
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
# Pages are allocated once, as large as memory allows: jax need not grab it all beforehand.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
case $gpus in
  0) echo "no GPU here: configs/launch/local.sh runs on the CPU" >&2; exit 2 ;;
  1) where=(--config "$(dirname "$0")/../clusters/1p1d_one_device.yaml") ;;
  *) where=(--processes --topology "${TOPOLOGY:-1p1d}" --tp "${TP:-1}") ;;
esac
exec memserve serve "${where[@]}" --model "$model" --host "${HOST:-127.0.0.1}" \
  --port "${PORT:-50051}" "$@"
