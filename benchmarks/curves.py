"""What grows with what: ``python -m benchmarks.curves``: a table, and a figure in benchmarks/results/.

Small random models around one size (``BASE``); along each curve one thing changes. Processor time of one thread, medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
EXPERIMENT = """
name: stream
backbone: builtin:tiny
tasks: [{tasks}]
train: {{examples: 16, steps: 4, global_batch_size: 8}}
evaluate: {{test: 32, retention: 0, drift: 0, max_new_tokens: 24, bootstrap: 20}}
tracking: {{mlflow: false}}
methods: [{{name: cot, reasoning: cot, strategy: full_finetune}}]
"""


@dataclass(frozen=True)
class Size:
    """Everything that a curve may change; lengths in tokens."""

    layers: int = 4
    width: int = 128
    vocabulary: int = 4096
    prompt: int = 128
    answer: int = 48
    thoughts: int = 4
    batch: int = 8


BASE = Size()


@dataclass(frozen=True)
class Curve:
    """Seconds against one field of ``Size``.

    Attributes:
        job: 'coconut', 'softcot' or 'cot' (an optimiser step each), or 'answers'.
    """

    name: str
    job: str
    field: str
    values: Sequence[int]


CURVES = [
    *(Curve(f"{job}: step, prompt tokens", job, "prompt", (64, 128, 256, 512)) for job in ("cot", "softcot")),
    *(Curve(f"{job}: step, answer tokens", job, "answer", (24, 48, 96, 192)) for job in ("cot", "softcot")),
    Curve("coconut: step, thoughts", "coconut", "thoughts", (1, 2, 4, 8)),
    Curve("softcot: step, soft thoughts", "softcot", "thoughts", (1, 4, 16, 64)),
    *(Curve(f"{job}: step, width", job, "width", (64, 128, 256, 512)) for job in ("cot", "softcot")),
    *(Curve(f"{job}: step, layers", job, "layers", (2, 4, 8, 16)) for job in ("cot", "softcot")),
    *(Curve(f"{job}: step, vocabulary", job, "vocabulary", (1024, 4096, 16384, 65536)) for job in ("cot", "softcot")),
    Curve("8 answers, prompt tokens", "answers", "prompt", (64, 128, 256, 512)),
    Curve("8 answers, answer tokens", "answers", "answer", (24, 48, 96, 192)),
    Curve("8 answers, vocabulary", "answers", "vocabulary", (1024, 4096, 16384, 65536)),
    Curve("48 tokens each, answers side by side", "answers", "batch", (1, 8, 32, 128)),
]
TASKS = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="What grows with what.")
    p.add_argument("--quick", action="store_true", help="two points a curve, once each: does everything work?")
    p.add_argument("--out", default=str(RESULTS), metavar="FOLDER", help="where curves.json and curves.svg are written")
    args = p.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["CL_SOFTCOT_CACHE"] = "off"
    from benchmarks.machine import describe
    from cl_softcot.machine.exact import make_exact

    make_exact()
    found: dict[str, Any] = {"machine": describe("cpu"), "base": dataclasses.asdict(BASE), "curves": {}, "stream": []}
    for curve in CURVES:
        values = curve.values[:2] if args.quick else curve.values
        seconds = [measure(curve, value, 1 if args.quick else 3) for value in values]
        found["curves"][curve.name] = {"x": list(values), "cpu_s": seconds, "exponent": exponent(values, seconds)}
        print(line_of(curve.name, found["curves"][curve.name]), flush=True)
    for n in TASKS[:2] if args.quick else TASKS:
        found["stream"].append({"tasks": n, **stream(n)})
        print("stream of {tasks} tasks: learning {learning:.2f} s, answering {answering:.2f} s".format(**found["stream"][-1]))
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, folder / "curves.svg")
    return 0


def exponent(x: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds ~ x^b at the curve's upper end."""
    import math

    return math.log(seconds[-1] / seconds[-2]) / math.log(x[-1] / x[-2])


def line_of(name: str, curve: dict[str, Any]) -> str:
    """A curve as a line of text."""
    points = "  ".join(f"{x:>6}: {s * 1e3:7.1f} ms" for x, s in zip(curve["x"], curve["cpu_s"], strict=True))
    return f"{name:<38} {points}   ~ x^{curve['exponent']:.2f} at the end"


# ------------------------------------------------------------------------------------------------------ one point


def measure(curve: Curve, value: int, repetitions: int) -> float:
    """Median processor seconds of one job."""
    from benchmarks.machine import Clock

    job = make_job(curve.job, dataclasses.replace(BASE, **{curve.field: value}))
    job()
    clock = Clock("cpu")
    return statistics.median(clock(job)[1] for _ in range(repetitions))


def make_job(kind: str, size: Size) -> Callable[[], Any]:
    """An optimiser step, or a batch of answers that all have ``size.answer`` tokens."""
    from benchmarks.cases.steps import OwnSteps
    from benchmarks.models import ModelSize, random_examples, random_model
    from cl_softcot.models.writing import generate
    from cl_softcot.reasoning.base import Parts, Phase
    from cl_softcot.reasoning.coconut import Coconut
    from cl_softcot.reasoning.cot import Cot
    from cl_softcot.reasoning.softcot import Softcot
    from strategies.frozen_backbone import FrozenBackbone
    from strategies.full_finetune import FullFinetune

    model = ModelSize("llama", size.layers, size.width, 4, size.vocabulary, kv_heads=4, feed_forward=3 * size.width, context=2048)
    reasoning: Any = {
        "cot": Cot,
        "answers": Cot,
        "softcot": lambda: Softcot(Softcot.Settings(soft_thoughts=size.thoughts)),
        "coconut": lambda: Coconut(Coconut.Settings(thoughts_per_step=size.thoughts, max_stage=1)),
    }[kind]()
    helper = random_model(dataclasses.replace(model, layers=2, width=64, feed_forward=192), seed=1) if kind == "softcot" else None
    parts = Parts(random_model(model), helper, reasoning)
    reasoning.build(parts, seed=0)
    # Coconut drops one step of a token, and the target has the marker and the end of text besides.
    examples = random_examples(
        size.batch,
        size.vocabulary,
        question=(size.prompt, size.prompt),
        steps=1,
        step_tokens=1,
        answer_tokens=size.answer - (2 if kind == "coconut" else 3),
    )
    phase = Phase(1 if kind == "coconut" else 0, 0)
    rows = [reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in examples]
    if kind == "answers":
        parts.backbone.text.end_ids = (-1,)  # nothing ends by itself
        return lambda: generate(reasoning, parts, rows, size.answer, batch_size=size.batch)
    strategy = FrozenBackbone() if kind == "softcot" else FullFinetune()
    return OwnSteps(parts, strategy, [reasoning.collate(rows)])


def stream(n: int) -> dict[str, float]:
    """Processor seconds of a run over ``n`` tasks, by what it does: every task is learned once, and answered after every turn."""
    from benchmarks.stopwatch import watching
    from cl_softcot.config.loading import load_experiment
    from cl_softcot.run.api import run_experiment

    tasks = ", ".join(f"{{name: t{i}, task: arithmetic, events: [2, {2 + i % 2}]}}" for i in range(n))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.yaml"
        path.write_text(EXPERIMENT.format(tasks=tasks), encoding="utf-8")
        config = load_experiment(path, [f"output_dir={folder}/run"]).config
        with watching() as watch:
            run_experiment(config)
        seconds = watch.stop()
    return {
        group: sum(s for (where, _), s in seconds.items() if where == group) for group in ("learning", "answering", "concluding")
    } | {"answers": float((n + 1) * n * config.evaluate.test)}


# --------------------------------------------------------------------------------------------------------- figure


def draw(found: dict[str, Any], path: Path) -> None:
    """One small picture for each thing that changes, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, curve in found["curves"].items():
        group = name.replace("soft thoughts", "thoughts").rsplit(", ", 1)[1]
        groups.setdefault(group, []).append((name.rsplit(", ", 1)[0], curve))
    figure, axes = plt.subplots(2, -(-(len(groups) + 1) // 2), figsize=(15, 6.5), constrained_layout=True)
    for axis, (group, curves) in zip(axes.flat, groups.items(), strict=False):
        for name, curve in curves:
            axis.plot(curve["x"], [s * 1e3 for s in curve["cpu_s"]], marker="o", label=name)
        _log_axes(axis, sorted({x for _, curve in curves for x in curve["x"]}), group, "processor time, ms")
    last = axes.flat[len(groups)]
    for what in ("learning", "answering"):
        last.plot([s["tasks"] for s in found["stream"]], [s[what] for s in found["stream"]], marker="o", label=what)
    _log_axes(last, [s["tasks"] for s in found["stream"]], "tasks in the stream", "processor time of a run, s")
    for axis in axes.flat[len(groups) + 1 :]:
        axis.axis("off")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _log_axes(axis: Any, x: Sequence[float], xlabel: str, ylabel: str) -> None:
    """Both axes logarithmic, with plain numbers at what was measured."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
