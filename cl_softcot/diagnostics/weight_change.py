"""Where the weights moved: relative change of the backbone's weights by layer and by kind of module, and its effective rank.

A change is ``‖W - W0‖_F / ‖W0‖_F`` over the weights that the method may change: those that are trained, or those that carry an
adapter, whose product then is the change. Everything else is the base's by construction and has no part in the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics._numbers import rank_of
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings, Subject
from cl_softcot.files import atomic_write
from cl_softcot.machine import processes
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.results.folder import RunFolder

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig

WeightDelta = tuple[str, Tensor, Tensor]  # name of a weight, what was added to it, and the base's own


class Settings(DiagnosticSettings):
    effective_rank: bool = Field(
        True, description="of every matrix's change: a singular value decomposition each (seconds each in a model of billions)"
    )


class WeightChange(Diagnostic):
    """Compares the weights with the base's and, with ``rows: each``, with those of the row before (a copy of which is kept)."""

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        strategy = method.strategy.learns_as
        if not strategy.trains:
            return "nothing is trained: the weights are the base's"
        if not (strategy.changes_backbone or strategy.adapts_backbone):
            return f"{strategy.__name__} leaves the backbone's weights as they are: no change, by construction"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            ``since_base``: see :func:`described`; of a per-task method ``copies``, one of them for each copy. With ``rows: each``
            from the second row on ``since_row_before``, where 0 in a layer means: not moved by the last turn.
        """
        if subject.bank:
            copies = {}
            for task in subject.bank.tasks:
                with subject.bank.active(task):
                    copies[task] = self._described(subject, _changes(subject))
            return {"copies": copies}
        numbers = {"since_base": self._described(subject, _changes(subject))}
        if self.settings.rows == "each":
            before = _kept(subject, subject.row - 1)
            if before is not None:
                with subject.changed(to=before):
                    then = {name: delta.clone() for name, delta, _ in _changes(subject)}
                moved = ((name, delta - then[name], base) for name, delta, base in _changes(subject))
                numbers["since_row_before"] = self._described(subject, moved)
            _keep(subject)
        return numbers

    def _described(self, subject: Subject, changes: Iterable[WeightDelta]) -> dict[str, Any]:
        return described(changes, subject.parts.backbone, ranks=self.settings.effective_rank)


def described(changes: Iterable[WeightDelta], backbone: LanguageModel, *, ranks: bool = True) -> dict[str, Any]:
    """Sizes of changes, by place.

    Returns:
        relative: over all weights together. layers: one number a decoder layer (0 where nothing may change). halves: of the
        layers, the lower is the smaller of an odd number. kinds: over all layers, by the module's name in its layer. outside:
        of what is in no layer, by name. share: how much of the squared change is in the lower and in the upper half of the
        layers and outside; they sum to 1, None if nothing changed. weights: how many numbers were compared. effective_rank:
        mean over matrices, by kind, beside the largest that is possible; None where nothing changed.
    """
    prefix, n_layers = _prefix_of_layers(backbone), len(backbone.layers)
    sums: dict[tuple[int | None, str], list[float]] = {}  # (layer, kind) -> squared change, squared weight
    rank_of: dict[str, list[tuple[float, int]]] = {}
    weights = 0
    for name, delta, base in changes:
        layer, kind = _place_of(name, prefix)
        entry = sums.setdefault((layer, kind), [0.0, 0.0])
        entry[0] += _squared_norm(delta)
        entry[1] += _squared_norm(base)
        weights += base.numel()
        if ranks and delta.dim() == 2:
            rank_of.setdefault(kind, []).append((effective_rank(delta), min(delta.shape)))

    def relative(wanted: Any) -> float:
        chosen = [entry for key, entry in sums.items() if wanted(*key)]
        below = sum(entry[1] for entry in chosen)
        return math.sqrt(sum(entry[0] for entry in chosen) / below) if below else 0.0

    def share(wanted: Any) -> float | None:
        total = sum(entry[0] for entry in sums.values())
        return sum(entry[0] for key, entry in sums.items() if wanted(key[0])) / total if total else None

    half = n_layers // 2
    found = {
        "relative": relative(lambda layer, kind: True),
        "layers": [relative(lambda layer, kind, i=i: layer == i) for i in range(n_layers)],
        "halves": {
            "lower": relative(lambda layer, kind: layer is not None and layer < half),
            "upper": relative(lambda layer, kind: layer is not None and layer >= half),
        },
        "kinds": {k: relative(lambda layer, kind, k=k: layer is not None and kind == k) for k in _kinds(sums, inside=True)},
        "outside": {k: relative(lambda layer, kind, k=k: layer is None and kind == k) for k in _kinds(sums, inside=False)},
        "share": {
            "lower": share(lambda layer: layer is not None and layer < half),
            "upper": share(lambda layer: layer is not None and layer >= half),
            "outside": share(lambda layer: layer is None),
        },
        "weights": weights,
    }
    if ranks:
        found["effective_rank"] = {kind: _mean_rank(found) for kind, found in rank_of.items()}
    return found


def effective_rank(matrix_MN: Tensor) -> float:
    """exp of the entropy of the singular values scaled to a sum of 1 (Roy & Vetterli 2007): 1 for a product of two vectors, n
    for n equal singular values; NaN for a matrix of zeros. Computed where the matrix is.
    """
    values = torch.linalg.svdvals(matrix_MN.detach().float())
    rounding = max(matrix_MN.shape) * torch.finfo(values.dtype).eps * values.max()
    return rank_of(values[values > rounding].double().cpu().numpy())


def _mean_rank(found: list[tuple[float, int]]) -> dict[str, Any]:
    ranks = [rank for rank, _ in found if not math.isnan(rank)]
    return {"mean": sum(ranks) / len(ranks) if ranks else None, "largest": max(size for _, size in found), "matrices": len(ranks)}


def _changes(subject: Subject) -> Iterator[WeightDelta]:
    return subject.strategy.weight_changes(subject.parts, subject.initial)


def _kinds(sums: Mapping[tuple[int | None, str], Any], *, inside: bool) -> list[str]:
    return list(dict.fromkeys(kind for layer, kind in sums if (layer is not None) == inside))


def _prefix_of_layers(backbone: LanguageModel) -> str:
    return next(name for name, module in backbone.model.named_modules() if module is backbone.layers) + "."


def _place_of(name: str, prefix: str) -> tuple[int | None, str]:
    """(layer, kind): model.layers.3.mlp.up_proj.weight -> (3, up_proj); what is in no layer: (None, its module's name)."""
    kind = name.split(".")[-2] if "." in name else name
    if not name.startswith(prefix):
        return None, kind
    return int(name.removeprefix(prefix).split(".")[0]), kind


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach().float(), dtype=torch.float64)) ** 2


# ------------------------------------------------------------------------------------------ the weights of a row


def _file(subject: Subject, row: int) -> Path:
    assert subject.folder is not None, "weights are kept in the run's own folder"
    return RunFolder(subject.folder).changed_weights(row)


def _keep(subject: Subject) -> None:
    """The trained tensors of this row, for the next one; those of the row before the last are not needed any more."""
    tensors = {name: processes.kept_by_main(t.detach()) for name, t in subject.strategy.tensors(subject.parts).items()}

    def write() -> None:
        path = _file(subject, subject.row)
        path.parent.mkdir(parents=True, exist_ok=True)
        separate = {n: t.cpu().clone() for n, t in tensors.items()}
        atomic_write(path, lambda beside: safetensors.torch.save_file(separate, beside), own_folder=True)
        _file(subject, subject.row - 2).unlink(missing_ok=True)

    processes.from_main(write)


def _kept(subject: Subject, row: int) -> Mapping[str, Tensor] | None:
    path = _file(subject, row)
    if not processes.from_main(path.exists):
        return None
    return processes.tensors_from_main(safetensors.torch.load_file(path) if processes.is_main() else None)
