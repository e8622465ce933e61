"""What every diagnostic has in common. What it sees of a method is an ``answering.subject.Subject``."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from cl_softcot.answering.policy import tensors_sha256
from cl_softcot.answering.subject import Subject
from cl_softcot.reasoning.base import Reasoning

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig


NO_SEQUENCE = "a reference learns no sequence: what it forgets has no meaning"


class DiagnosticSettings(BaseModel):
    """Settings that all diagnostics share; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Literal["last", "each"] = Field("last", description="after the last experience only, or after each")


class Diagnostic:
    """One measurement. Subclasses override ``measure``, and ``refuses`` where it makes no sense for some methods."""

    Settings: ClassVar[type[DiagnosticSettings]] = DiagnosticSettings

    def __init__(self, settings: Any = None):
        self.settings = self.Settings() if settings is None else settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        """Why a method cannot be measured in this way; None if it can. A reason stands in its result in place of numbers."""
        return None

    def wants(self, row: int, last: int) -> bool:
        """Whether row ``row`` of 0..``last`` is measured. Row 0, before learning, is not, unless a subclass says so."""
        return row == last or (self.settings.rows == "each" and row > 0)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """The numbers, as JSON data: each with its n, and an interval where it is a mean over examples."""
        raise NotImplementedError

    def moments(self, reasoning: Reasoning, steps: int) -> Collection[int]:
        """After which optimiser steps (1 to ``steps`` - 1) of a turn something is measured as well."""
        return ()

    def measure_inside(self, subject: Subject) -> dict[str, Any]:
        """What is measured at such a moment, ``subject.step``; after the turn ``measure`` finds it in ``subject.inside``."""
        raise NotImplementedError


@contextlib.contextmanager
def undisturbed(subject: Subject) -> Iterator[None]:
    """Random numbers and the modes of all modules (train or eval) are put back afterwards.

    Raises:
        RuntimeError: if what happens inside leaves other weights behind: all later numbers of the run would be wrong.
    """
    trained = subject.strategy.tensors(subject.parts)
    before, state = tensors_sha256(trained), (random.getstate(), np.random.get_state())
    modes = [(m, m.training) for owner in (subject.parts.backbone.model, subject.parts.reasoning) for m in owner.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    for module, training in modes:
        module.training = training
    if tensors_sha256(trained) != before:
        raise RuntimeError("a diagnostic changed the weights that it looked at")
