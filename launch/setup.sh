# Sourced by the scripts here: makes .venv with the package in it, once, and activates it.
# PYTHON chooses the interpreter (3.11 to 3.13); each version gets a venv of its own beside .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
extras="${1:-}"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
case "$version" in
3.11 | 3.12 | 3.13) ;;
*)
    echo "error: $python is Python $version; expected 3.11, 3.12 or 3.13; set PYTHON=python3.12" >&2
    exit 2
    ;;
esac
venv=".venv"
if [ -n "${PYTHON:-}" ]; then venv=".venv-$version"; fi
stamp="$venv/installed-$(cksum <pyproject.toml | cut -d' ' -f1)${extras}"
if [ ! -f "$stamp" ]; then
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras"
    touch "$stamp"
fi
# shellcheck disable=SC1091
. "$venv/bin/activate"
