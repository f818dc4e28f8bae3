# Sourced by the other scripts: makes .venv with llmhost in it, and only when something changed since the last time.
# Python is $PYTHON or the newest of python3.14 … python3.11, python3 on PATH.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found" >&2
  echo "hint: install one, or name it: PYTHON=/path/to/python3 $0" >&2
  return 1
}

# ensure_venv EXTRAS: an editable install of this checkout with the named extras (for example "[dev]").
ensure_venv() {
  local extras=${1:-} python wanted stamp=.venv/.llmhost-installed
  python=$(find_python)
  wanted="$python $extras $(cat pyproject.toml llmhost/__init__.py | cksum)"
  if [ -x .venv/bin/llmhost ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "==> installing llmhost into .venv"
  if ! "$python" -m venv --clear .venv; then
    echo "error: $python cannot make virtual environments" >&2
    echo "hint: install its venv module (Debian and Ubuntu: apt-get install python3-venv)" >&2
    return 1
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  echo "$wanted" >"$stamp"
}
