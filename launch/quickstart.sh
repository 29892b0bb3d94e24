#!/usr/bin/env bash
# From a clean clone to a trained DSRL network, its scores, an inference-only model and pictures:
#   bash launch/quickstart.sh [OUTPUT]
# Needs git, python3 (3.11 to 3.13) and about 10 minutes on two CPU cores; downloads no data.
set -euo pipefail
began=$SECONDS
output="${1:-runs/quickstart}"
set --
# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.venv/jax_cache}"
steps="${STEPS:-500}"

for mode in none full; do
    dsrl train --config="synthetic:dsrl=$mode" --config.steps="$steps" --workdir="$output/$mode"
    dsrl eval --workdir="$output/$mode" --split=test
done
dsrl export --workdir="$output/full" --output="$output/model"
dsrl data show --dataset=synthetic --split=test --images=3 --output="$output/pictures"
dsrl predict --model="$output/model" --output="$output/predictions" "$output/pictures/images"
dsrl compare --output="$output/report" base="$output/none" dsrl="$output/full"
echo "quickstart finished in $((SECONDS - began)) s: open $output/report/index.html"
