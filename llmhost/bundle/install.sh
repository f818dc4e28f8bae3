#!/bin/sh
# Installs llmhost and the rest of this bundle, without a network. Options: see `sh install.sh --help`.
# Python is $PYTHON, else the one that the bundle was made for.
{ # A shell reads to the closing brace before it runs anything, so that it runs nothing of a file that is cut.
set -eu

# bootstrap.py checks everything else, so it and what it works with are compared with SHA256SUMS before it runs.
CHECK='
import hashlib, os, re, sys

here, sums = sys.argv[1], os.path.join(sys.argv[1], "SHA256SUMS")
try:
    with open(sums, encoding="utf-8") as file:
        listed = {line[66:]: line[:64] for line in file.read().split("\n")}
except FileNotFoundError:
    sys.exit(f"error: {sums} is missing\nhint: copy it again: SHA256SUMS")
except (OSError, ValueError) as e:
    sys.exit(f"error: {sums} cannot be read: {e}\nhint: copy it again: SHA256SUMS")
faults = {}
for name in ("install.sh", "bootstrap.py", "carried.py", "bundle.json"):
    if not re.fullmatch("[0-9a-f]{64}", listed.get(name, "")):
        sys.exit(f"error: {sums} is damaged: it does not say what {name} is\nhint: copy it again: SHA256SUMS")
    try:
        with open(os.path.join(here, name), "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != listed[name]:
                faults[name] = "altered or cut short"
    except FileNotFoundError:
        faults[name] = "missing"
    except OSError as e:
        faults[name] = f"not to be read: {e.strerror}"
if faults:
    what = "; ".join(f"{name} is {fault}" for name, fault in faults.items())
    them = "it" if len(faults) == 1 else "them"
    names = " ".join(faults)
    sys.exit(f"error: {here}: {what}\nhint: copy {them} again: {names} (and SHA256SUMS, if that does not help)")
'

choose_python() {
  for python in "$@"; do
    if "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' 2>/dev/null; then
      return
    fi
  done
  echo "error: this bundle needs Python @PYTHON@, and none is on PATH" >&2
  echo "hint: name one: PYTHON=/path/to/python@PYTHON@ sh $0" >&2
  exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -n "${PYTHON:-}" ]; then
  choose_python "$PYTHON"
else
  choose_python python@PYTHON@ "@INTERPRETER@" python3
fi
"$python" -I -c "$CHECK" "$here" || exit 1
exec "$python" "$here/bootstrap.py" "$@"
}
