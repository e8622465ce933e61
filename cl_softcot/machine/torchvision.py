"""Make torchvision importable when its build does not match torch's.

``pip install`` after a CPU build of torch happily adds a CUDA build of torchvision. Its compiled operators then fail to load, and
``import torchvision`` dies with ``operator torchvision::nms does not exist``; avalanche, and parts of transformers and peft, die
with it. No vision operator is ever called here, so it is enough that the missing operators have a schema. On a healthy install,
and on one without torchvision, nothing is changed.

``python -m cl_softcot.machine.torchvision`` mends the environment itself, so that ``import transformers`` alone works too.
"""

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from cl_softcot.errors import UserError
from cl_softcot.machine import torchvision_startup

_COPY = "cl_softcot_torchvision"
_FIX = "install builds of torch and torchvision that belong together, from one index (https://pytorch.org/get-started/locally)"
_status: str | None = None


def ensure_torchvision() -> str:
    """Import torchvision, defining the operators that its own library failed to bring.

    Returns 'absent' (no torchvision installed), 'native' (a healthy install) or 'mended'. Call it before anything that imports
    avalanche, transformers or peft; further calls cost nothing.
    """
    global _status
    if _status is None:
        _status = "absent" if importlib.util.find_spec("torchvision") is None else _import_and_mend()
    return _status


def _import_and_mend() -> str:
    torchvision_startup.start()
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ImportError(f"torchvision does not fit the installed torch and could not be mended ({error}); {_FIX}") from error
    return "native" if importlib.import_module("torchvision.extension")._has_ops() else "mended"


def mend_environment(python: str = sys.executable) -> str | None:
    """Lets ``import torchvision`` work in every process of an environment; any number of times.

    Args:
        python: its interpreter.

    Returns:
        What was done, in a sentence; None where nothing had to be.

    Raises:
        UserError: torchvision cannot be imported, and not for the operators' sake.
    """
    wrong = _import_error(python)
    if not wrong:
        return None
    folder = _run(python, "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    if "torchvision::" in wrong:
        copy, starts = Path(folder, f"{_COPY}.py"), Path(folder, f"{_COPY}.pth")
        try:
            shutil.copyfile(torchvision_startup.__file__, copy)
            starts.write_text(f"import {_COPY}; {_COPY}.start()\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"torchvision does not fit torch, and {folder} cannot be written to ({error})", fix=_FIX) from None
        still = _import_error(python)
        if not still:
            return (
                "torchvision is a build for another torch (as where torch is one without CUDA): its operators will not run, "
                f"and {starts} lets everything that imports it work"
            )
        copy.unlink()
        starts.unlink()
        wrong = still
    raise UserError(f"torchvision cannot be imported: {wrong}", fix=_FIX)


def _import_error(python: str) -> str:
    """The last line of what importing torchvision says; empty where it works, or is not installed."""
    code = "import importlib.util as u\nif u.find_spec('torchvision'): import torchvision"
    done = _run(python, code)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _run(python: str, code: str) -> subprocess.CompletedProcess[str]:
    # Isolated from the caller's folder and PYTHONPATH: it is about what is installed.
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)


def _main() -> int:
    try:
        said = mend_environment()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if said:
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
