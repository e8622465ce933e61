"""What decoding asks of a way of thinking: all that the models know of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from cl_softcot.models.batch import Batch, Edit, Encoded
    from cl_softcot.models.language_model import LanguageModel
    from cl_softcot.models.running import State


class HasBackbone(Protocol):
    """Models that answer together; the backbone is the one that writes. The rest is the thinker's own business."""

    @property
    def backbone(self) -> LanguageModel: ...


class Thinker(Protocol):
    """Thinks in front of an answer, and writes it a token at a time. ``parts`` are what it was made for."""

    def takes_drafts(self) -> bool:
        """Whether several tokens of a guess may be read at once."""

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Prompts as one batch, padded on the left."""

    def begin(self, parts: Any, batch: Batch, edit: Edit | None = None, room: int | None = None) -> State:
        """Thinks; the state's logits predict the first token."""

    def step(self, parts: Any, state: State, ids_B: Tensor) -> Tensor:
        """Appends one token a row; the logits of the next, [B, V]."""
