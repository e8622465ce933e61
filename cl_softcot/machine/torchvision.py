"""Make torchvision importable when its build does not match torch's.

``pip install`` after a CPU build of torch happily adds a CUDA build of torchvision. Its compiled operators then fail to load, and
``import torchvision`` dies with ``operator torchvision::nms does not exist``; avalanche, and parts of transformers and peft, die
with it. No vision operator is ever called here, so it is enough that the missing operators have a schema. On a healthy install,
and on one without torchvision, nothing is changed.
"""

import importlib
import importlib.util
import re
import sys

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_ATTEMPTS = 16

_library = None  # kept alive: the schemas are withdrawn when the Library object dies
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
    global _library
    import torch

    for _ in range(_ATTEMPTS):
        try:
            importlib.import_module("torchvision")
            return "native" if _library is None else "mended"
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            _forget_half_imported()
            if _library is None:
                _library = torch.library.Library("torchvision", "FRAGMENT")
            _library.define(missing[1] + _SCHEMA)
    raise ImportError(
        "torchvision does not fit the installed torch and could not be mended; "
        "install matching builds of both, or uninstall torchvision's mismatching build"
    )


def _forget_half_imported() -> None:
    """Drop the modules of a failed import, so that the next attempt starts afresh."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
