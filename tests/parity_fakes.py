"""What the parity tests share: the recorded numbers, tokenizers made of recorded ids, and a look at what reaches the backbone.

The numbers were produced by the unmodified official classes of Coconut and SoftCoT (sources and versions: the folder's README).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cl_softcot.machine.torchvision import ensure_torchvision
from cl_softcot.models import running

ensure_torchvision()

from cl_softcot.models import assistant as assistant_module  # noqa: E402
from cl_softcot.models import writing  # noqa: E402
from cl_softcot.models.batch import Encoded  # noqa: E402
from cl_softcot.reasoning import base as base_module  # noqa: E402
from cl_softcot.reasoning import coconut as coconut_module  # noqa: E402
from cl_softcot.tasks.base import Example  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "parity"
needs_fixtures = [
    pytest.mark.shared,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the recorded numbers (../shared/parity) are not there"),
]
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


def recorded(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / name)


class IdTokenizer:
    """A tokenizer that knows lines by heart: text -> ids from a table; ids that it never made become their numbers."""

    chat_template = bos_token_id = None
    all_special_tokens: list[str] = []
    added_tokens_decoder: dict[int, str] = {}

    def __init__(
        self, lines: Mapping[str, Sequence[int]], names: Mapping[str, int], eos: int, vocab: Mapping[str, int] | None = None
    ):
        self.lines, self.names = {"a": [97], **{k: list(v) for k, v in lines.items()}}, dict(names)
        self.eos_token_id = self.pad_token_id = eos
        self.all_special_ids = [eos]
        self._made: dict[tuple[int, ...], str] = {}

    def get_vocab(self) -> dict[str, int]:
        return self.names

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        ids = [i for line in text.splitlines(keepends=True) for i in self.lines[line]]
        self._made[tuple(ids)] = text
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], **_) -> str:
        return self._made.get(tuple(ids), " ".join(map(str, ids)))


@pytest.fixture(autouse=True)
def _made_up_tokens(monkeypatch):
    """The recorded models have no rows for the tokens of other kinds of thoughts, which nothing here reads."""
    monkeypatch.setattr("cl_softcot.models.language_model.check_rows", lambda *_: None)


def names(start: int, end: int, latent: int, slot: int = 10**6, pause: int = 10**6 + 1) -> dict[str, int]:
    """The special tokens under the names by which a model is known to bring them."""
    return {"<bol>": start, "<eol>": end, "<lat>": latent, "<slot>": slot, "<pause>": pause}


def encoded(ids: Sequence[int], first_label: int, question: str = "") -> Encoded:
    """Recorded ids as prefix and target."""
    return Encoded(Example("recorded", "recorded", question, (), ""), list(ids[:first_label]), list(ids[first_label:]))


class Seen:
    """What went through a backbone: inputs and final states of all columns so far, [B, T, D] each, and the mask."""

    def __init__(self) -> None:
        self._pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.mask_BT: torch.Tensor | None = None
        self.calls = 0

    def add(self, inputs_BTD: torch.Tensor, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor) -> None:
        self._pieces.append((inputs_BTD, hidden_BTD))
        self.mask_BT, self.calls = mask_BT, self.calls + 1

    def rows(self, what: str) -> list[torch.Tensor]:
        """'inputs' or 'hidden' of each row at its real places, [T_i, D]."""
        whole_BTD = torch.cat([piece[what == "hidden"] for piece in self._pieces], 1)
        return [row_TD[mask_T] for row_TD, mask_T in zip(whole_BTD, self.mask_BT, strict=True)]


def losses_of_four_steps(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> list[float]:
    """The losses before each of four steps."""
    losses = []
    for _ in range(4):
        now = loss()
        losses.append(now.item())
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
    return losses


@contextlib.contextmanager
def watching(backbone, monkeypatch) -> Iterator[Seen]:
    """Records what is appended to the backbone's states, in order, wherever the code calls ``forward``."""
    seen, real = Seen(), running.forward

    def forward(model, state, embeddings_BTD, mask_BT=None):
        hidden_BTD = real(model, state, embeddings_BTD, mask_BT)
        if model is backbone:
            seen.add(embeddings_BTD, hidden_BTD, state.mask_BT)
        return hidden_BTD

    with monkeypatch.context() as patch:
        for module in (writing, base_module, coconut_module, assistant_module):
            patch.setattr(module, "forward", forward)
        patch.setattr(base_module, "can_keep", lambda _: False)  # what is kept from earlier would not come by
        yield seen
