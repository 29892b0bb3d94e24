#!/usr/bin/env bash
# Any dsrl command as an xpk workload on a TPU cluster that xpk made:
#   CLUSTER=c IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/dsrl:TAG bash launch/xpk.sh \
#       train --config=cityscapes --config.data.root=/shared/cityscapes --workdir=/shared/run
# Not executed here: parsed and validated only.
# TPU_TYPE, SLICES, WORKLOAD, MAX_RESTARTS as below. /shared stands for storage attached with
# `xpk storage attach`. JAX finds its processes in what GKE sets.
set -euo pipefail
cluster="${CLUSTER:?the name of the xpk cluster}"
image="${IMAGE:?an image with the package, extra tpu}"
: "${1:?usage: CLUSTER=c IMAGE=i bash launch/xpk.sh train FLAGS...}"

# xpk starts only infrastructure failures again unless told: 143 and 75 count as the program's.
exec xpk workload create \
    --cluster="$cluster" \
    --workload="${WORKLOAD:-dsrl}" \
    --tpu-type="${TPU_TYPE:-v5litepod-16}" \
    --num-slices="${SLICES:-1}" \
    --docker-image="$image" \
    --max-restarts="${MAX_RESTARTS:-20}" \
    --restart-on-user-code-failure \
    --termination-grace-period-seconds=120 \
    --command="dsrl $(printf '%q ' "$@")"
