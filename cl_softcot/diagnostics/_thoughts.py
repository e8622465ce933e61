"""What the diagnostics of thoughts share: taking thoughts out, putting others in, and how sure a method is of given tokens.

Interventions set all thoughts of an answer at once: they are taken from a pass without an edit, changed, and put in at the
places that they came from, so that what the backbone reads there is exactly what was chosen. Continuous thoughts come one
after the other; the later ones are *not* thought anew behind a changed one. That is the causal question (what do the values in
these places do to the answer, everything else being equal?): were they computed anew, a later thought could look at the
question again and repair what was done to an earlier one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cl_softcot.models.batch import Encoded, Place
from cl_softcot.reasoning.base import Parts

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject
    from cl_softcot.models.language_model import LanguageModel
    from cl_softcot.reasoning.base import Reasoning

_ROWS = 256  # rows of logits that are made at a time


def thinking_of(method: MethodConfig) -> Any:
    """A method's way of thinking with its settings, not built: to ask what it would do."""
    return method.reasoning.cls(method.reasoning.settings)


def no_thoughts(method: MethodConfig) -> str | None:
    """Why a method has no thoughts that could be edited; None if it has."""
    thinking = thinking_of(method)
    if thinking.thought is None:
        return f"{method.reasoning.name} has no thoughts beside the text that it writes"
    if thinking.thoughts_per_answer() == 0:
        return f"{method.reasoning.name} has 0 thoughts with these settings"
    return None


def thought_of(reasoning: Reasoning) -> str:
    """Name of the special token that thoughts stand at; asked of those only that have some (see ``no_thoughts``)."""
    assert reasoning.thought is not None, f"{type(reasoning).__name__} has no thoughts"
    return reasoning.thought


def some(probe: Probe, n: int) -> list[Any]:
    """The first ``n`` of a probe's examples; they are in no order."""
    return probe.examples[:n]


# ------------------------------------------------------------------------------------------------------------- edits


class Recorder:
    """An edit that changes nothing and keeps what it saw."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], Tensor] = {}

    def __call__(self, thoughts_BKD: Tensor, place: Place) -> Tensor:
        for e, index_K, thoughts_KD in zip(place.batch["encoded"], place.index_BK.tolist(), thoughts_BKD, strict=True):
            self._seen |= {(id(e), k): thought_D for k, thought_D in zip(index_K, thoughts_KD, strict=True) if k >= 0}
        return thoughts_BKD

    def of(self, encoded: Encoded) -> Tensor:
        """The thoughts of an example, [K, D], in their order."""
        mine = sorted((k, thought_D) for (owner, k), thought_D in self._seen.items() if owner == id(encoded))
        return torch.stack([thought_D for _, thought_D in mine])


class PutIn:
    """An edit that puts given thoughts [K, D] in the places of each example, whatever stood there."""

    def __init__(self, encoded: Sequence[Encoded], thoughts: Sequence[Tensor]):
        self._thoughts = {id(e): thoughts_KD for e, thoughts_KD in zip(encoded, thoughts, strict=True)}

    def __call__(self, thoughts_BKD: Tensor, place: Place) -> Tensor:
        mine_BKD = pad_sequence([self._thoughts[id(e)] for e in place.batch["encoded"]], batch_first=True)
        if mine_BKD.shape[1] == 0:
            return thoughts_BKD
        index_BK1 = place.index_BK.to(mine_BKD.device)[..., None]
        chosen_BKD = mine_BKD.gather(1, index_BK1.clamp(min=0).expand(-1, -1, mine_BKD.shape[2]))
        return torch.where(index_BK1 >= 0, chosen_BKD.to(thoughts_BKD), thoughts_BKD)


def recorded(subject: Subject, encoded: Sequence[Encoded]) -> list[Tensor]:
    """The thoughts of each example as they are, [K, D]; call inside ``answering``."""
    recorder = Recorder()
    subject.write(encoded, edit=recorder, limit=1)
    return [recorder.of(e) for e in encoded]


def thinking_about(subject: Subject, examples: Sequence[Any]) -> list[Encoded]:
    """Examples as the method answers them, those left out that get no thought (chains without a step, where the number of
    thoughts follows the chain).
    """
    token = subject.parts.backbone.special[thought_of(subject.parts.reasoning)]
    return [e for e in subject.encode(examples) if token in e.prefix_ids]


def with_thoughts(parts: Parts, encoded: Sequence[Encoded], n: Sequence[int]) -> list[Encoded]:
    """Copies of examples whose places for thoughts after the first ``n`` are taken away."""
    token = parts.backbone.special[thought_of(parts.reasoning)]
    copies = []
    for e, keep in zip(encoded, n, strict=True):
        places = [i for i, token_id in enumerate(e.prefix_ids) if token_id == token]
        dropped = set(places[keep:])
        copies.append(dataclasses.replace(e, prefix_ids=[t for i, t in enumerate(e.prefix_ids) if i not in dropped]))
    return copies


# ------------------------------------------------------------------------------------------- how sure of given tokens


@dataclass
class Answered:
    """What came of some examples under one condition, one entry each.

    ``logp``: log-probability, in nats, of the gold answer's tokens (its end not included), behind what is said to stand there.
    ``text_logp``: the same of all gold tokens that the method would write, steps and answer; empty where it was not asked for.
    Where the last step names the answer, the answer alone says little.
    """

    right: list[bool]
    logp: list[float]
    text_logp: list[float] = field(default_factory=list)


def target_states(subject: Subject, encoded: Sequence[Encoded], edit: Any = None) -> list[Tensor]:
    """The hidden states, after the final norm, that predict the tokens of each target, [T_i, D]; call inside ``answering``."""
    parts, size = subject.parts, subject.evaluate.batch_size
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].prefix_ids), len(encoded[i].target_ids), i))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = parts.reasoning.collate([encoded[i] for i in rows]).to(parts.backbone.device)
        hidden_BTD = parts.reasoning.predict(parts, batch, edit)
        found |= {i: h_TD[: len(encoded[i].target_ids)] for i, h_TD in zip(rows, hidden_BTD, strict=True)}
    return [found[i] for i in range(len(encoded))]


def log_probabilities(backbone: LanguageModel, hidden_ND: Tensor) -> Tensor:
    """States -> log-probabilities of all tokens, [N, V] in fp32."""
    return backbone.logits(hidden_ND).float().log_softmax(-1)


def token_logps(subject: Subject, encoded: Sequence[Encoded], edit: Any = None) -> list[list[float]]:
    """Log-probability of each token of each target, in nats; call inside ``answering``."""
    states = target_states(subject, encoded, edit)
    hidden_ND = torch.cat(states)
    ids_N = torch.tensor([i for e in encoded for i in e.target_ids]).to(hidden_ND.device)
    pieces = zip(hidden_ND.split(_ROWS), ids_N.split(_ROWS), strict=True)
    backbone = subject.parts.backbone
    logp_N = torch.cat([log_probabilities(backbone, h_ND).gather(1, i_N[:, None])[:, 0] for h_ND, i_N in pieces])
    return [piece.tolist() for piece in logp_N.clamp(max=0).split([len(e.target_ids) for e in encoded])]


def answer_logps(subject: Subject, encoded: Sequence[Encoded], starts: Sequence[int], edit: Any = None) -> list[float]:
    """Log-probability of each target's tokens from ``starts`` on, summed (nats); call inside ``answering``."""
    found = token_logps(subject, encoded, edit)
    return [sum(logps[start:]) for logps, start in zip(found, starts, strict=True)]


def before_the_answer(subject: Subject, encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[int]]:
    """Examples with gold steps and answer, as far as the method writes them, as the target, its end left out, and where
    the answer begins in it.
    """
    reasoning, text = subject.parts.reasoning, subject.parts.backbone.text
    stage = reasoning.final_phase().stage
    pieces = [text.answer_ids(reasoning.steps_written(e.example, stage), e.example.answer) for e in encoded]
    whole = [dataclasses.replace(e, target_ids=head + answer) for e, (head, answer) in zip(encoded, pieces, strict=True)]
    return whole, [len(head) for head, _ in pieces]


def answered(subject: Subject, probe: Probe, encoded: Sequence[Encoded], thoughts: Sequence[Tensor]) -> Answered:
    """Answers with given thoughts [K, D] put in, fewer than there are places for or none; call inside ``answering``.

    ``logp`` is behind the gold steps that the method would write.
    """
    copies = with_thoughts(subject.parts, encoded, [len(thoughts_KD) for thoughts_KD in thoughts])
    answers = subject.write(copies, edit=PutIn(copies, thoughts))
    whole, starts = before_the_answer(subject, copies)
    found = token_logps(subject, whole, PutIn(whole, thoughts))
    logp = [sum(logps[start:]) for logps, start in zip(found, starts, strict=True)]
    return Answered(subject.right(probe, [e.example for e in copies], answers), logp, list(map(sum, found)))


def answered_many(
    subject: Subject, probe: Probe, encoded: Sequence[Encoded], conditions: dict[str, list[Tensor]]
) -> dict[str, Answered]:
    """``answered`` under several conditions, side by side in the same batches."""
    rows = [e for _ in conditions for e in encoded]
    found = answered(subject, probe, rows, [thoughts_KD for thoughts in conditions.values() for thoughts_KD in thoughts])
    n = len(encoded)
    parts = [slice(i * n, (i + 1) * n) for i in range(len(conditions))]
    return {name: Answered(found.right[p], found.logp[p], found.text_logp[p]) for name, p in zip(conditions, parts, strict=True)}
