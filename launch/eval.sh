#!/usr/bin/env bash
# Score an exported model with the compiled evaluation:
#   bash launch/eval.sh MODEL [--split=test] [--config.data.root=DIR] ...
set -euo pipefail
model="${1:?usage: bash launch/eval.sh MODEL [flags of dsrl eval]}"
shift
exec dsrl eval --model="$model" "$@"
