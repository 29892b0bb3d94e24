#!/usr/bin/env bash
# The test run, from nothing: bash launch/test.sh [pytest arguments]. PYTHON=python3.12 chooses one.
set -euo pipefail
arguments=("$@")

# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[dev]"
# XLA's compiler for GPUs, which needs none. Beside the environment: in it JAX would look for a GPU.
jaxlib="$(python -c 'import importlib.metadata as m; print(m.version("jaxlib"))')"
export DSRL_GPU_COMPILER="$VIRTUAL_ENV/gpu-compiler-$jaxlib"
if [ ! -d "$DSRL_GPU_COMPILER" ]; then
    python -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$DSRL_GPU_COMPILER" "jax-cuda12-pjrt==$jaxlib" ||
        echo "no jax-cuda12-pjrt $jaxlib here: tests of programs for GPUs are skipped" >&2
fi
ruff check .
ruff format --check .
workers="$(python -c 'import os; print(min(2, os.cpu_count() or 1))')"
exec python -m pytest -q -n "$workers" --dist loadfile --durations=15 ${arguments[@]+"${arguments[@]}"}
