#!/bin/sh
# Makes .venv beside this checkout and installs the project into it, at the versions of constraints.txt.
# Usage: sh tools/setup.sh [test]     test: the tools of the test suite too. PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extra=${1:+"[$1]"}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: Python 3.11 or newer is needed, $python is $("$python" -V 2>&1); set PYTHON=python3.11, say" >&2
    exit 2
fi
if [ ! -x .venv/bin/pip ]; then
    # Debian keeps the venv module in a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -q && apt-get install -qy "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    fi
    "$python" -m venv .venv || { echo "setup: no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
fi
# Debian's pip takes minutes to resolve this many pins.
.venv/bin/pip install -q --disable-pip-version-check -U "pip>=25"
# torch first and alone: where a build without CUDA is on offer, pip then takes that one.
.venv/bin/pip install -q --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
# An editable install is what is wanted here; setuptools warns of it in ten lines.
PYTHONWARNINGS='ignore:Editable installation' .venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -e ".$extra"
# That build's torchvision is taken too where it is on offer; where it is not, torchvision would stop `import transformers`.
.venv/bin/python -m cl_softcot.machine.torchvision
