"""Are the thoughts used? They are changed before the backbone reads them, and the answers compared with the unedited ones.

All thoughts of an answer are set at once, and none is thought anew behind a changed one (see ``_thoughts``). What is compared,
for the same examples: accuracy of the answers that are written, and the probability of the gold answer's tokens alone, read
behind the steps of the gold chain that the method would still write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics._numbers import by_task_and_pooled, change, level_of
from cl_softcot.diagnostics._thoughts import Answered, Recorder, answered_many, no_thoughts, some, thinking_about
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject

Intervention = Literal["truncate", "zero", "noise", "swap", "filler", "shuffle"]
OWN = "own"  # the thoughts are put back as they were


class Interventions(Diagnostic):
    """Truncated, zeroed, replaced by noise, by another question's and by filler, and in another order."""

    class Settings(DiagnosticSettings):
        n: int = Field(32, ge=2, description="examples a task")
        kinds: list[Intervention] = Field(
            ["truncate", "zero", "noise", "swap", "filler", "shuffle"],
            description="truncate: only the first are kept, the places of the others are taken away; noise: of normal "
            "distribution, each thought as long as it was; swap: of another question of the same task; filler: the embedding "
            "of a token that says nothing",
        )
        keep: list[float] = Field([0.0, 0.5], description="shares of the thoughts that are kept by truncate, rounded down")

    settings: Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        return no_thoughts(method)

    def measure(self, subject: Subject) -> dict[str, Any]:
        n_boot = subject.evaluate.bootstrap
        tasks, own, edited = {}, {}, {}
        for name in subject.learned:
            probe = subject.probe(name)
            with subject.answering(name):
                tasks[name], own[name], edited[name] = self._task(subject, probe)
        kinds = dict.fromkeys(kind for found in edited.values() for kind in found)

        def pooled() -> dict[str, Any]:
            having = {kind: {t: edited[t][kind] for t in edited if kind in edited[t]} for kind in kinds}
            return level_of(own, n_boot) | {"edits": {k: change(found, own, n_boot) for k, found in having.items()}}

        return by_task_and_pooled(tasks, pooled)

    def _task(self, subject: Subject, probe: Probe) -> tuple[dict[str, Any], Answered, dict[str, Answered]]:
        n_boot = subject.evaluate.bootstrap
        encoded = thinking_about(subject, some(probe, self.settings.n))
        plain = subject.write(encoded)
        recorder = Recorder()
        unedited = subject.write(encoded, edit=recorder)
        thoughts = [recorder.of(e) for e in encoded]
        conditions, skipped = self._conditions(subject, thoughts)
        found = answered_many(subject, probe, encoded, conditions)
        own = found.pop(OWN)
        plain_right = subject.right(probe, [e.example for e in encoded], plain)
        null = {
            "same_answers_with_an_edit_that_does_nothing": _share(a.ids == b.ids for a, b in zip(plain, unedited, strict=True)),
            "same_verdicts_with_thoughts_put_back": _share(a == b for a, b in zip(plain_right, own.right, strict=True)),
        }
        norms = torch.cat(thoughts).float().norm(dim=1)
        numbers = level_of({probe.name: own}, n_boot) | {
            "null": null,
            "thoughts": max(map(len, thoughts)),
            "norm": {"mean": norms.mean().item(), "sd": norms.std(correction=0).item()},
            "norm_of_embeddings": _typical_norm(subject),
            "edits": {
                kind: change({probe.name: answers}, {probe.name: own}, n_boot) | self._more(subject, kind, encoded)
                for kind, answers in found.items()
            }
            | {kind: {"skipped": reason} for kind, reason in skipped.items()},
        }
        return numbers, own, found

    def _conditions(self, subject: Subject, own: list[Tensor]) -> tuple[dict[str, list[Tensor]], dict[str, str]]:
        """Thoughts under each condition, the unchanged ones first; and the reasons for those that make no sense."""
        made: dict[str, list[Tensor] | str] = {}
        for kind in dict.fromkeys(self.settings.kinds):
            if kind == "truncate":
                kept = {f"keep_{share:g}": [t[: int(share * len(t))] for t in own] for share in self.settings.keep}
                made |= _distinct(kept)
            else:
                made[kind] = _EDITS[kind](subject, own)
        for name, thoughts in made.items():
            if not isinstance(thoughts, str) and all(torch.equal(a, b) for a, b in zip(thoughts, own, strict=True)):
                made[name] = "it leaves every thought as it is: they do not differ"
        skipped = {kind: reason for kind, reason in made.items() if isinstance(reason, str)}
        return {OWN: own} | {kind: t for kind, t in made.items() if not isinstance(t, str)}, skipped

    def _more(self, subject: Subject, kind: str, encoded: Sequence[Any]) -> dict[str, Any]:
        if kind == "swap":
            answers = [e.example.answer for e in encoded]
            donors = donors_of(len(encoded), subject.seed)
            return {"donors_with_the_same_answer": _share(answers[i] == answers[d] for i, d in enumerate(donors))}
        if kind == "filler":
            return {"token": subject.parts.backbone.tokenizer.decode(subject.parts.backbone.text.filler_ids(1))}
        return {}


def _share(flags: Any) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def _distinct(kept: dict[str, list[Tensor]]) -> dict[str, list[Tensor] | str]:
    """With few thoughts two shares may keep the same ones."""
    made: dict[str, list[Tensor] | str] = {}
    seen: dict[tuple[int, ...], str] = {}
    for name, thoughts in kept.items():
        lengths = tuple(map(len, thoughts))
        made[name] = f"it keeps as many thoughts as {seen[lengths]}" if lengths in seen else thoughts
        seen.setdefault(lengths, name)
    return made


def _typical_norm(subject: Subject) -> float:
    backbone = subject.parts.backbone
    ids = torch.arange(min(backbone.vocab_size, 4096), device=backbone.device)
    return backbone.embed(ids).float().norm(dim=1).mean().item()


# ------------------------------------------------------------------------------------------------------------- edits


def _generator(subject: Subject) -> torch.Generator:
    return torch.Generator().manual_seed(subject.seed)


def _zero(subject: Subject, own: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(thoughts_KD) for thoughts_KD in own]


def _noise(subject: Subject, own: list[Tensor]) -> list[Tensor]:
    generator = _generator(subject)
    edited = []
    for thoughts_KD in own:
        drawn_KD = torch.randn(thoughts_KD.shape, generator=generator).to(thoughts_KD)
        edited.append(drawn_KD * thoughts_KD.norm(dim=1, keepdim=True) / drawn_KD.norm(dim=1, keepdim=True))
    return edited


def donors_of(n: int, seed: int) -> list[int]:
    """Whose thoughts each of ``n`` questions gets: a random cycle, so that nobody keeps its own."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    donors = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [donors[i] for i in range(n)]


def _swap(subject: Subject, own: list[Tensor]) -> list[Tensor] | str:
    if len(own) < 2:
        return "there is one question only"
    if len({len(thoughts_KD) for thoughts_KD in own}) > 1:
        return "questions have different numbers of thoughts"
    return [own[donor] for donor in donors_of(len(own), subject.seed)]


def _filler(subject: Subject, own: list[Tensor]) -> list[Tensor]:
    backbone = subject.parts.backbone
    ids = torch.tensor(backbone.text.filler_ids(max(map(len, own))), device=backbone.device)
    rows_KD = backbone.embed(ids)
    return [rows_KD[: len(thoughts_KD)].to(thoughts_KD) for thoughts_KD in own]


def _shuffle(subject: Subject, own: list[Tensor]) -> list[Tensor] | str:
    if min(map(len, own)) < 2:
        return "one thought has no order"
    generator = _generator(subject)
    edited = []
    for thoughts_KD in own:
        order_K = torch.randperm(len(thoughts_KD), generator=generator)
        while torch.equal(order_K, torch.arange(len(order_K))):
            order_K = torch.randperm(len(thoughts_KD), generator=generator)
        edited.append(thoughts_KD[order_K.to(thoughts_KD.device)])
    return edited


_EDITS: dict[str, Callable[[Any, list[Tensor]], list[Tensor] | str]] = {
    "zero": _zero,
    "noise": _noise,
    "swap": _swap,
    "filler": _filler,
    "shuffle": _shuffle,
}
