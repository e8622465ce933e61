"""The settings of the study of generated pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cl_softcot.config.plugins import Strict
from cl_softcot.config.problems import LABEL, SLUG, Collected
from cl_softcot.law.pictures.glyphs import CLASSES

Label = Annotated[int, Field(ge=0, lt=CLASSES)]
Rate = Annotated[float, Field(gt=0)]


class PicturesConfig(Strict):
    """The generated pictures."""

    size: int = Field(16, ge=8, le=64, description="pixels on each side")
    distortion: float = Field(0.6, ge=0, le=2, description="how far pictures of one class differ")
    noise: float = Field(0.2, ge=0, description="standard deviation of each pixel's noise (ink is 1)")
    pretraining: int = Field(500, ge=CLASSES, description="pictures of each family that the base learns from")
    train: int = Field(4000, ge=CLASSES, description="digits that are learned from afterwards")
    test: int = Field(1000, ge=CLASSES, description="pictures of each family that are measured on")


class PretrainingConfig(Strict):
    """The base."""

    hidden: list[Annotated[int, Field(ge=1)]] = Field([128, 64], min_length=1, description="widths of the hidden layers")
    steps: int = Field(300, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: Rate = Field(1e-3)


class TrialTraining(Strict):
    """The budget, the same for every method."""

    batch_size: int = Field(64, ge=1)
    checkpoints: list[Annotated[int, Field(ge=1)]] = Field(
        [10, 20, 40, 80, 160, 320],
        min_length=1,
        description="steps after which everything is measured; the last one ends a trial",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if sorted(set(self.checkpoints)) != self.checkpoints:
            raise ValueError("checkpoints should rise, such as [10, 20, 40]")
        return self


class _Method(Strict):
    name: str = Field(pattern=LABEL, description="unique label")
    family: str = Field(pattern=LABEL, description="the kind of method; the law is fitted for each kind too")
    learning_rates: list[Rate] | None = Field(None, min_length=1, description="instead of those of the study")
    replay: float = Field(0.0, ge=0, description="weight of a batch of old garments beside each batch")
    l2_to_base: float = Field(0.0, ge=0, description="weight of the squared distance from the base's weights")


class Labels(_Method):
    """Supervised, on fixed labels."""

    learn: Literal["labels"]
    even: list[Label] = Field(min_length=1, description="labels of even digits, in equal shares")
    odd: list[Label] = Field(min_length=1, description="labels of odd digits, in equal shares")

    @model_validator(mode="after")
    def _right(self) -> Self:
        for parity, labels in enumerate((self.even, self.odd)):
            wrong = [label for label in labels if label % 2 != parity]
            if wrong:
                raise ValueError(
                    f"{('even', 'odd')[parity]}: {wrong[0]} is of the other parity, so that nothing right is learned"
                )
            if len(set(labels)) < len(labels):
                raise ValueError(f"{('even', 'odd')[parity]}: {labels} names a label twice")
        return self


class Oracle(_Method):
    """Supervised, on the nearest distribution that is always right."""

    learn: Literal["oracle"]


class PolicyGradient(_Method):
    """On the policy's own answers, rewarded where they are right."""

    learn: Literal["policy_gradient"]
    samples: int = Field(8, ge=1, description="answers an input")
    baseline: Literal["leave_one_out", "none"] = Field("leave_one_out", description="what the reward is compared with")

    @model_validator(mode="after")
    def _others(self) -> Self:
        if self.baseline == "leave_one_out" and self.samples < 2:
            raise ValueError("baseline: leave_one_out compares an answer with others: samples should be at least 2")
        return self


Method = Annotated[Labels | Oracle | PolicyGradient, Field(discriminator="learn")]


class LawConfig(Strict):
    """One study."""

    name: str = Field(pattern=SLUG, description="name (left out: that of the file)")
    output_dir: str = Field("", description="folder of everything (left out: runs/<name>)")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2], min_length=1, description="each draws pictures and a base of its own"
    )
    learning_rates: list[Rate] = Field(min_length=1, description="every method is trained with each")
    pictures: PicturesConfig = PicturesConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    train: TrialTraining = TrialTraining()
    methods: list[Method] = Field(min_length=1)
    unions: dict[str, list[str]] = Field({}, description="families that are fitted together too, by a name")
    bootstrap: int = Field(1000, ge=0, description="resamples for the intervals")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = Collected(type(self))
        problems.extend(_clashes(self))
        problems.raise_if_any()
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or f"runs/{self.name}")


def _clashes(config: LawConfig) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    names = [method.name for method in config.methods]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield ("methods", i, "name"), f"{name!r} is there twice", name
    if len(set(config.seeds)) < len(config.seeds):
        yield ("seeds",), "a seed is there twice", config.seeds
    for holder, loc in [(config, ()), *((method, ("methods", i)) for i, method in enumerate(config.methods))]:
        if len(set(holder.learning_rates or ())) < len(holder.learning_rates or ()):
            yield (*loc, "learning_rates"), "a rate is there twice", holder.learning_rates
    families = {method.family for method in config.methods}
    for union, members in config.unions.items():
        for member in members:
            if member not in families:
                yield (
                    ("unions", union),
                    f"no method is of the family {member!r} (there are: {', '.join(sorted(families))})",
                    members,
                )
