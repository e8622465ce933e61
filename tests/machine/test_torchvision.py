"""A torchvision that is built for another torch: in this process, and in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cl_softcot.errors import UserError
from cl_softcot.machine import torchvision, torchvision_startup

# What torchvision's own import does, with a library that cannot be loaded. `torch` here keeps the operators by name.
FAKE = {
    "torch/__init__.py": "from torch import library\n",
    "torch/library.py": (
        "known = set()\n"
        "class Library:\n"
        "    def __init__(self, name, kind): self.name = name\n"
        "    def define(self, schema): known.add(self.name + '::' + schema.partition('(')[0])\n"
        "def register_fake(name):\n"
        "    if name not in known: raise RuntimeError(f'operator {name} does not exist')\n"
    ),
    "torchvision/__init__.py": "from . import extension\nfrom torchvision import _meta_registrations\n",
    "torchvision/extension.py": "def _has_ops(): return {loads}\n",
    "torchvision/_meta_registrations.py": "import torch\ntorch.library.register_fake('torchvision::{operator}')\n",
}


def environment(folder: Path, *, loads: bool = False, operator: str = "nms") -> str:
    """An empty environment with both in it; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = str(folder / "bin" / "python")
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    for name, text in FAKE.items():
        path = Path(place.stdout.strip(), name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("{loads}", str(loads)).replace("{operator}", operator))
    return python


def imports(python: str) -> bool:
    return subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode == 0


def hooks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("cl_softcot*") if path.is_file() and "__pycache__" not in str(path))


def test_an_environment_is_mended_once_and_for_all(tmp_path):
    python = environment(tmp_path)
    assert not imports(python)
    said = torchvision.mend_environment(python)
    assert said and str(tmp_path) in said and imports(python)
    assert torchvision.mend_environment(python) is None and imports(python)
    assert hooks(tmp_path) == ["cl_softcot_torchvision.pth", "cl_softcot_torchvision.py"]


def test_a_healthy_environment_is_left_alone(tmp_path):
    python = environment(tmp_path, loads=True)
    registrations = next(tmp_path.rglob("_meta_registrations.py"))
    registrations.write_text("")
    assert imports(python) and torchvision.mend_environment(python) is None and not hooks(tmp_path)


def test_what_cannot_be_mended_is_told_and_leaves_nothing_behind(tmp_path):
    python = environment(tmp_path, operator="another")
    with pytest.raises(UserError, match="torchvision::another") as error:
        torchvision.mend_environment(python)
    assert "belong together" in error.value.fix and not hooks(tmp_path)


def test_it_is_there_once_a_process():
    torchvision_startup.start()
    torchvision_startup.start()
    assert [type(finder).__name__ for finder in sys.meta_path].count("Operators") == 1


def test_libraries_that_look_for_torchvision_import_by_themselves():
    """In an environment that tools/setup.sh made: it ends with `python -m cl_softcot.machine.torchvision`."""
    mended = Path(sysconfig.get_path("purelib"), "cl_softcot_torchvision.pth").is_file()
    if not mended and torchvision.ensure_torchvision() == "mended":
        pytest.skip("this environment was not made by tools/setup.sh, or before it mended torchvision")
    code = "from transformers import LlamaForCausalLM; import peft, sys; assert 'cl_softcot' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
