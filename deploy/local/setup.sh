#!/usr/bin/env bash
# Makes .venv with exactly what requirements/dev.lock names. Run through `make setup`.
# uv comes from the PATH, else from .venv, else from a small environment of its own in .run/uv.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Never another interpreter than one of this machine's.
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE="${UV_LINK_MODE:-copy}"

python=
for name in python3.11 python3.12 python3.13 python3.14 python3; do
  if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(command -v "$name")
    break
  fi
done
if [ -z "$python" ]; then
  echo "Python 3.11 or newer is missing: apt-get install python3 python3-venv" >&2
  exit 1
fi

if command -v uv >/dev/null; then
  uv=uv
elif [ -x .venv/bin/uv ]; then
  uv=.venv/bin/uv
else
  uv=.run/uv/bin/uv
  if [ ! -x "$uv" ]; then
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
      echo "Python's venv module is missing: apt-get install python3-venv (or install uv)" >&2
      exit 1
    fi
    echo "getting uv"
    "$python" -m venv .run/uv
    .run/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
  fi
fi

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  "$uv" venv --quiet --clear --python "$python" .venv
fi
echo "installing requirements/dev.lock into .venv"
"$uv" pip sync --quiet --python .venv/bin/python requirements/dev.lock
ln -sf ../../deploy/iiot .venv/bin/iiot
touch .venv/.synced
