# Sourced by the other scripts: makes .venv with llmhost in it, and only when something changed since the last time.
# Python is $PYTHON or the newest of python3.14 … python3.11, python3 on PATH.

find_python() {
  local candidate
  local candidates=(python3.14 python3.13 python3.12 python3.11 python3)
  [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found" >&2
  echo "hint: install one, or name it: PYTHON=/path/to/python3 $0" >&2
  return 1
}

# Debian and Ubuntu split the venv module off Python; root can mend that here.
make_venv() {
  "$1" -m venv .venv && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! "$1" -c 'import ensurepip' 2>/dev/null; then
    echo "==> installing python3-venv with apt-get"
    apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv
    "$1" -m venv --clear .venv && return
  fi
  echo "error: $1 cannot make virtual environments" >&2
  echo "hint: install its venv module (Debian and Ubuntu: apt-get install python3-venv)" >&2
  return 1
}

# ensure_venv EXTRA: an editable install of this checkout with an extra of pyproject.toml (examples, dev).
ensure_venv() {
  local python wanted stamp=".venv/.llmhost-$1"
  python=$(find_python)
  wanted="$PWD $python $(cat pyproject.toml llmhost/__init__.py | cksum)"
  [ -x .venv/bin/llmhost ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "==> installing llmhost into .venv"
  [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv "$python"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
  echo "$wanted" >"$stamp"
}
