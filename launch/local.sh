#!/usr/bin/env bash
# Any dsrl command as N processes on this machine, on its CPU (to try several processes):
#   bash launch/local.sh N [DEVICES_PER_PROCESS] -- COMMAND
#   bash launch/local.sh 2 -- train --config=synthetic:tiny --workdir=W
# Ends all when one fails; SIGTERM is passed on, so that the run saves. The exit code is that of the
# first process that fails; what is left GRACE (30) seconds after it is killed.
set -euo pipefail

usage() {
    echo "error: found '$*'; expected local.sh N [DEVICES_PER_PROCESS] -- train FLAGS..." >&2
    exit 2
}
given=("$@")
devices=1
if [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then count="$1"; else usage "${given[@]}"; fi
shift
if [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
    devices="$1"
    shift
fi
if [ "${1:-}" != -- ] || [ $# = 1 ]; then usage "${given[@]}"; fi
shift

port=0
until [ "$port" != 0 ]; do # one nobody listens on
    port=$((20000 + RANDOM % 12000))
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=0; fi
done
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$count"

declare -A running=() # by rank
trap 'kill -TERM "${running[@]}" 2>/dev/null || true' TERM INT
for ((rank = 0; rank < count; rank++)); do
    JAX_PROCESS_ID="$rank" dsrl "$@" &
    running[$rank]=$!
done

code=0
failed_at=0
while [ "${#running[@]}" != 0 ]; do
    sleep 0.2
    for rank in "${!running[@]}"; do
        if kill -0 "${running[$rank]}" 2>/dev/null; then continue; fi
        status=0
        wait "${running[$rank]}" || status=$?
        unset "running[$rank]"
        if [ "$code" = 0 ] && [ "$status" != 0 ]; then
            code=$status
            failed_at=$SECONDS
        fi
    done
    # The others see that one is gone and end by themselves, or are ended.
    if [ "$code" != 0 ] && [ $((SECONDS - failed_at)) -ge "${GRACE:-30}" ]; then
        kill -KILL "${running[@]}" 2>/dev/null || true
    fi
done
exit "$code"
