#!/usr/bin/env bash
# The test run, from nothing: bash launch/test.sh [pytest arguments]. PYTHON=python3.12 chooses one.
set -euo pipefail
arguments=("$@")

# shellcheck source=launch/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[dev]"
ruff check .
ruff format --check .
workers="$(python -c 'import os; print(min(2, os.cpu_count() or 1))')"
exec python -m pytest -q -n "$workers" --dist loadfile --durations=15 ${arguments[@]+"${arguments[@]}"}
