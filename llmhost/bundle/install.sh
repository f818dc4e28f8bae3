#!/bin/sh
# Installs llmhost and the rest of this bundle, without a network. Options: see `sh install.sh --help`.
# Python is $PYTHON, else the one that the bundle was made for.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in ${PYTHON:-python@PYTHON@ "@INTERPRETER@" python3}; do
  if "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' 2>/dev/null; then
    exec "$python" "$here/bootstrap.py" "$@"
  fi
done
echo "error: this bundle needs Python @PYTHON@, and none is on PATH" >&2
echo "hint: name one: PYTHON=/path/to/python@PYTHON@ sh $0" >&2
exit 1
