#!/usr/bin/env bash
# Any dsrl command on all hosts of a Cloud TPU slice, made as a queued resource when it is not there:
#   TPU=dsrl ZONE=europe-west4-b bash launch/tpu_vm.sh train --config=cityscapes --workdir=DIR/run
#   TPU=dsrl ZONE=europe-west4-b bash launch/tpu_vm.sh delete
# Not executed here: parsed and validated only.
# ACCELERATOR and RUNTIME as below; SPOT=1 for preemptible. DIR is a file system that every host has
# mounted: the first host writes the checkpoints, all read them. Nothing is deleted unless asked.
set -euo pipefail
tpu="${TPU:?the name of the slice and of its request}"
zone="--zone=${ZONE:?the zone}"
: "${1:?usage: TPU=t ZONE=z bash launch/tpu_vm.sh train FLAGS... | delete}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
queued=(gcloud compute tpus queued-resources)

state() {
    "${queued[@]}" describe "$tpu" "$zone" --format='value(state)' 2>/dev/null || true
}
everywhere() {
    gcloud compute tpus tpu-vm ssh "$tpu" "$zone" --worker=all --command="$1"
}

if [ "$1" = delete ]; then exec "${queued[@]}" delete "$tpu" "$zone" --force; fi

if [ -z "$(state)" ]; then
    spot=()
    if [ "${SPOT:-0}" = 1 ]; then spot=(--spot); fi
    "${queued[@]}" create "$tpu" "$zone" --node-id="$tpu" \
        --accelerator-type="${ACCELERATOR:-v5litepod-16}" \
        --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" ${spot[@]+"${spot[@]}"}
fi
while true; do
    now="$(state)"
    case "$now" in
    *FAILED* | *SUSPEND*)
        echo "error: $tpu: found $now; expected ACTIVE; delete it and start again" >&2
        exit 75
        ;;
    *ACTIVE*) break ;;
    esac
    sleep 30
done

# The package as committed, with a Python of its own: that of the image may be older than 3.11.
folder="$(mktemp -d)"
trap 'rm -r "$folder"' EXIT
archive="$folder/dsrl_jax.tar.gz"
git archive --format=tar.gz --prefix=dsrl_jax/ --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$tpu:dsrl_jax.tar.gz" "$zone" --worker=all
# shellcheck disable=SC2016 # expanded on the hosts
everywhere 'set -e; rm -rf dsrl_jax; tar xzf dsrl_jax.tar.gz
    python3 -m pip install --quiet --user uv
    test -d dsrl_venv || python3 -m uv venv --quiet --python 3.12 dsrl_venv
    python3 -m uv pip install --quiet --python dsrl_venv/bin/python "./dsrl_jax[tpu]"'

# The metadata server of each host knows its number and the addresses of all, the first host first.
# shellcheck disable=SC2016 # expanded on the hosts
environment='ask() {
    curl --silent --fail --header Metadata-Flavor:Google \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
hosts="$(ask worker-network-endpoints | tr , "\n" | sed "s/.*://")"
export JAX_COORDINATOR_ADDRESS="$(echo "$hosts" | head -n1):8476"
export JAX_NUM_PROCESSES="$(echo "$hosts" | wc -l)"
export JAX_PROCESS_ID="$(ask agent-worker-number)"
. dsrl_venv/bin/activate'
everywhere "set -e; $environment; dsrl $(printf '%q ' "$@")"
