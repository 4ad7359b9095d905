#!/usr/bin/env bash
# Everything that is to be measured on an accelerator, in one go: tests of the kernels on it, their
# tiles, their rates before and after those, a whole model. Writes a file each into OUT_DIR.
#   configs/launch/measure.sh OUT_DIR [SHAPE]
# PYTHON (python3) has jax for the device; TORCH_PYTHON one with torch, for its attention beside
# ours. QUICK=1: small cases, a look whether all of it works, also on a CPU. DRY=1: prints only.
set -u
if [[ $# -lt 1 ]]; then
  echo "usage: $0 OUT_DIR [SHAPE]" >&2
  exit 2
fi
cd "$(dirname "$0")/../.." && mkdir -p "$1" || exit 2
out=$(realpath "$1") shape=${2:-llama3-8b} python=${PYTHON:-python3} failed=()
export PYTHONPATH=$PWD XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.6}
memserve=("$python" -m memserve_jax.cli)
quick=() small=() torch=()
if [[ -n ${QUICK:-} ]]; then
  quick=(--quick) small=(--rounds 2 --prefill 64 --batches 4 --context 32)
fi
if [[ -n ${TORCH_PYTHON:-} ]]; then torch=(--torch-python "$TORCH_PYTHON"); fi

step() {  # NAME COMMAND...: its output goes to OUT_DIR/NAME.txt; a failure is not the end
  local name=$1; shift
  echo "$name: $*"
  if [[ -n ${DRY:-} ]]; then return; fi
  "$@" >"$out/$name.txt" 2>&1 || { failed+=("$name"); tail -n 3 "$out/$name.txt" >&2; }
}
step machine "$python" -c 'import jax; print(jax.__version__, jax.devices())'
step tests "$python" -m pytest -q -m device tests/kernels
step before "${memserve[@]}" bench kernels "${quick[@]}" --json "$out/before.json"
step tiles "${memserve[@]}" bench kernels --tune --batches 1,16,64,256 --contexts 1024,8192 \
  --pages 16,64
step kernels "${memserve[@]}" bench kernels "${quick[@]}" "${torch[@]}" \
  --json "$out/kernels.json" --plot "$out/kernels.png"
step model "${memserve[@]}" bench model --shape "$shape" "${small[@]}" --json "$out/model.json"
if [[ ${#failed[@]} -gt 0 ]]; then echo "failed: ${failed[*]}" >&2; exit 1; fi
