#!/usr/bin/env bash
# One instance on this TPU host; run it on every host of the job. Host 0 runs the scheduler too.
#   GKE JobSet: the container's command, NUM_PREFILL and SCHEDULER=<host 0>:50051 in its env;
#               JOB_COMPLETION_INDEX comes from the job.
#   Plain VMs:  gcloud compute tpus tpu-vm ssh NAME --worker=all --command=\
#                 "NUM_PREFILL=1 SCHEDULER=<host 0>:50051 configs/launch/tpu_pod.sh MODEL_DIR"
# The first NUM_PREFILL hosts prefill, the others decode; an instance is one host, TP its chips.
# OPTIONS goes to every command: OPTIONS="--config tls.yaml" as in configs/clusters/1p1d_tls.yaml, or
# OPTIONS=--insecure where plain text between the hosts will do. EXEC=echo only shows the commands.
set -eu -o pipefail
if [[ $# -ne 1 || -z ${SCHEDULER:-} ]]; then
  echo "usage: SCHEDULER=HOST:PORT [OPTIONS=] [NUM_PREFILL=1] [TP=4] [CACHING=] $0 MODEL_DIR" >&2
  exit 2
fi
model=$1
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
host=${JOB_COMPLETION_INDEX:-${TPU_WORKER_ID:-}}
if [[ -z $host ]]; then
  host=$(curl -sf -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number")
fi
# Each host is a TPU system of its own: libtpu must not wait for the other hosts of the slice.
export TPU_PROCESS_BOUNDS=1,1,1 TPU_WORKER_ID=0 TPU_WORKER_HOSTNAMES=localhost
export TPU_CHIPS_PER_PROCESS_BOUNDS=${TPU_CHIPS_PER_PROCESS_BOUNDS:-2,2,1}
prefill=${NUM_PREFILL:-1}
read -ra options <<<"${OPTIONS:-}"
common=(--set "caching=${CACHING:-pd_caching_3}" --host 0.0.0.0 "${options[@]}")
read -ra run <<<"${EXEC:-}"
trap 'kill $(jobs -p)' TERM INT  # the children drain, and end
if ((host == 0)); then
  "${run[@]}" memserve scheduler --model "$model" "${common[@]}" --port "${SCHEDULER##*:}" &
fi
if ((host < prefill)); then
  name=p$host role=prefill
else
  name=d$((host - prefill)) role=decode
fi
"${run[@]}" memserve instance --name "$name" --role "$role" --scheduler "$SCHEDULER" \
  --model "$model" --tp "${TP:-4}" "${common[@]}" &
until wait; do :; done
