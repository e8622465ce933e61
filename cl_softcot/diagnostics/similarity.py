"""How alike the states of base and method are, layer by layer: linear CKA (Kornblith et al. 2019, arXiv 1905.00414, section 3).

Both read the same texts, questions with the base's own continuation, and are compared at the same tokens: those that predict
a token of the continuation. With Gram matrices K = X Xᵀ and L = Y Yᵀ of the N tokens' states

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

with the unbiased estimate of HSIC (Song et al. 2012, JMLR 13, eq. 5): the usual one is far above 0 for unrelated states as
soon as N is not much larger than their width. CKA is 1 for states that are a rotation of each other, near 0 (or just below)
for unrelated ones. Tokens of a text are not independent, so that intervals come from leaving out one text at a time
(jackknife).
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings, Subject
from cl_softcot.metrics.drift import written_ids
from cl_softcot.models.batch import Encoded
from cl_softcot.models.own_weights import only_looks
from cl_softcot.reasoning.base import Parts
from cl_softcot.reasoning.cot import Cot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.models.language_model import LanguageModel
    from cl_softcot.tasks.base import Example

_GENERAL = "general"


class Settings(DiagnosticSettings):
    examples: int = Field(24, ge=4, description="texts of each task, and as many of the base's own families together")
    tokens: int = Field(16, ge=1, description="tokens of each text at most, spread evenly over the base's continuation")


class Similarity(Diagnostic):
    """Linear CKA with the base's states after every layer, of the method as used and of its bare weights in plain CoT."""

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if not method.strategy.cls.trains:
            return "nothing is trained: its states are the base's own"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            ``sets``: for each task of the stream and for ``general`` (questions of the base's own families) ``texts`` and
            ``tokens`` (N) and, ``as_used`` and ``weights_alone``, a list of ``{value, low, high}``, one a layer; the last is
            the state after the final norm. ``weights_alone`` is None where the weights are the base's to the bit; so is
            ``as_used`` on general text for a per-task method, which sends it to the base.
        """
        sets: dict[str, dict[str, Any]] = {}
        for name, examples in self._texts(subject).items():
            if name not in subject.cache.setdefault("similarity", {}):
                subject.cache["similarity"][name] = self._of_base(subject, examples)
            continuations, chosen, base = subject.cache["similarity"][name]
            groups = [i for i, places in enumerate(chosen) for _ in places]
            sets[name] = {"texts": len(examples), "tokens": len(groups), "as_used": None, "weights_alone": None}
            if not (subject.bank and name == _GENERAL):
                with subject.answering(name) as parts:
                    encoded = _continued(subject.encode(examples), continuations)
                    used = states(parts, encoded, chosen, subject.evaluate.batch_size)
                sets[name]["as_used"] = [cka_interval(x, y, groups) for x, y in zip(base, used, strict=True)]
                if subject.strategy.changes_backbone:
                    alone = self._of_bare_weights(subject, name, examples, continuations, chosen)
                    sets[name]["weights_alone"] = [cka_interval(x, y, groups) for x, y in zip(base, alone, strict=True)]
        return {"layers": len(subject.parts.backbone.layers), "sets": sets}

    def _texts(self, subject: Subject) -> dict[str, list[Example]]:
        n = self.settings.examples
        sets = {probe.name: probe.examples[:n] for probe in subject.tasks}
        each = -(-n // max(1, len(subject.families)))
        general = [example for probe in subject.families for example in probe.examples[:each]][:n]
        return sets | ({_GENERAL: general} if len(general) > 3 else {})

    def _of_base(self, subject: Subject, examples: list[Example]) -> tuple[list[list[int]], list[list[int]], list[Tensor]]:
        """The base's continuations, the chosen places in each, and its states there."""
        base, size = subject.base, subject.evaluate.batch_size
        continuations = written_ids(base, examples, subject.evaluate.max_new_tokens)
        chosen = [spread(len(ids), self.settings.tokens) for ids in continuations]
        with torch.no_grad():
            return (
                continuations,
                chosen,
                states(base.parts, _continued(_plain(base.parts, examples), continuations), chosen, size),
            )

    def _of_bare_weights(
        self, subject: Subject, name: str, examples: list[Example], continuations: list[list[int]], chosen: list[list[int]]
    ) -> list[Tensor]:
        """The backbone as it is now, without anything that the method brings, in plain chain of thought."""
        plain, size = Parts(subject.parts.backbone, None, Cot()), subject.evaluate.batch_size
        with subject.answering(name), subject.strategy.weights_alone(subject.parts):
            return states(plain, _continued(_plain(plain, examples), continuations), chosen, size)


# ------------------------------------------------------------------------------------------------------- states


def spread(length: int, n: int) -> list[int]:
    """At most ``n`` places among ``length``, evenly spread, the first included."""
    return sorted({i * length // n for i in range(n)}) if length > n else list(range(length))


def _plain(parts: Parts, examples: Sequence[Example]) -> list[Encoded]:
    """Questions in plain chain of thought."""
    phase = dataclasses.replace(parts.reasoning.final_phase(), answering=True)
    return [parts.reasoning.encode(parts.backbone.text, example, phase, random.Random(0)) for example in examples]


def _continued(encoded: Sequence[Encoded], continuations: Sequence[Sequence[int]]) -> list[Encoded]:
    """The same prompts with these continuations as their targets."""
    return [dataclasses.replace(e, target_ids=list(ids)) for e, ids in zip(encoded, continuations, strict=True)]


def states(parts: Parts, encoded: Sequence[Encoded], chosen: Sequence[Sequence[int]], batch_size: int) -> list[Tensor]:
    """States that predict the chosen target tokens, [N, D] after each layer and last of all after the final norm; N counts texts
    in their order, and the places of each. Call without gradients.
    """
    found: dict[int, list[Tensor]] = {}
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].prefix_ids), len(encoded[i].target_ids), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = parts.reasoning.collate([encoded[i] for i in rows]).to(parts.backbone.device)
        with _last_outputs(parts.backbone) as outputs:
            final_BTD = parts.reasoning.predict(parts, batch)
        T = final_BTD.shape[1]
        for row, i in enumerate(rows):
            # The last call of a layer ends with the columns that predict the target.
            found[i] = [h_BTD[row, -T:][list(chosen[i])].double().cpu() for h_BTD in (*outputs, final_BTD)]
    return [torch.cat([found[i][layer] for i in range(len(encoded))]) for layer in range(len(parts.backbone.layers) + 1)]


@contextmanager
def _last_outputs(backbone: LanguageModel) -> Iterator[list[Tensor]]:
    """What each decoder layer returned when it was called last."""
    outputs: list[Tensor] = [torch.empty(0)] * len(backbone.layers)

    def keep(i: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            outputs[i] = output[0] if isinstance(output, tuple) else output

        return only_looks(hook)

    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(backbone.layers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------------------------------------------- CKA


def hsic(K_NN: Tensor, L_NN: Tensor) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two Gram matrices (Song et al. 2012, eq. 5); N > 3."""
    return float(hsic_without(K_NN, L_NN, torch.zeros(1, len(K_NN), dtype=K_NN.dtype))[0])


def hsic_without(K_NN: Tensor, L_NN: Tensor, left_out_GN: Tensor) -> Tensor:
    """The same without some of the N, for each of G choices: 1 where one is left out, 0 where it is kept. [G]."""
    K, L, out = K_NN - torch.diag(K_NN.diagonal()), L_NN - torch.diag(L_NN.diagonal()), left_out_GN
    N_G = (1 - out).sum(1)

    def total(M: Tensor) -> Tensor:
        """Sum of what is left of a symmetric matrix without these rows and columns."""
        return M.sum() - 2 * out @ M.sum(0) + ((out @ M) * out).sum(1)

    rows_K, rows_L = K.sum(0) - out @ K, L.sum(0) - out @ L  # sums over the columns that are left, [G, N]
    middle = 2 * (rows_K * rows_L * (1 - out)).sum(1) / (N_G - 2)
    sums = total(K) * total(L) / ((N_G - 1) * (N_G - 2))
    return (total(K * L) + sums - middle) / (N_G * (N_G - 3))


def cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """Debiased linear CKA of two sets of states of the same N > 3 things, of any widths; NaN where one does not vary."""
    return _cka(x_ND @ x_ND.T, y_ND @ y_ND.T)


def _cka(K: Tensor, L: Tensor) -> float:
    below = hsic(K, K) * hsic(L, L)
    return hsic(K, L) / math.sqrt(below) if below > 0 else math.nan


def cka_interval(x_ND: Tensor, y_ND: Tensor, groups: Sequence[int]) -> dict[str, float]:
    """CKA with a 95 % interval from leaving out one group (text) at a time: value ± 1.96 standard errors (Tukey's jackknife),
    at most 1. NaN ends with fewer than two groups.
    """
    x_ND, y_ND = _centred(x_ND), _centred(y_ND)
    K, L, group_N = x_ND @ x_ND.T, y_ND @ y_ND.T, torch.tensor(groups)
    value = _cka(K, L)
    out_GN = torch.stack([group_N == name for name in sorted(set(groups))]).to(K.dtype)
    out_GN = out_GN[(1 - out_GN).sum(1) > 3]
    if len(out_GN) < 2:
        return {"value": value, "low": math.nan, "high": math.nan}
    below_G = hsic_without(K, K, out_GN) * hsic_without(L, L, out_GN)
    left_G = hsic_without(K, L, out_GN) / below_G.clamp(min=0).sqrt()
    error = math.sqrt((len(left_G) - 1) * float(left_G.var(correction=0)))
    return {"value": value, "low": value - 1.96 * error, "high": min(1.0, value + 1.96 * error)}


def _centred(x_ND: Tensor) -> Tensor:
    """HSIC does not depend on the mean; a large common part would cost digits."""
    return x_ND - x_ND.mean(0)
