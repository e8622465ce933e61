"""``python -m benchmarks.side_by_side``: settings trained side by side over one frozen backbone, against one by one.

Every example is seen once, so that a run by itself never reads a prefix twice, and each run by itself begins with nothing kept,
as one in a process of its own does. Side by side there is only room for the prefixes of a few steps: what is saved is what being
in step saves, however large the data. The assistant's states are at hand in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmarks.cases.softcot import needed_for_training
from benchmarks.flops import Call, operations, shape_of
from benchmarks.models import ModelSize, random_examples, random_model
from cl_softcot.config.settings import TrainConfig
from cl_softcot.learning.learner import Learner
from cl_softcot.learning.stream import make_stream
from cl_softcot.machine.exact import make_exact
from cl_softcot.machine.lanes import hand_on, side_by_side
from cl_softcot.models import frozen_prefix
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.batch import Encoded
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.reasoning.base import Parts
from cl_softcot.reasoning.softcot import Softcot
from cl_softcot.tasks.base import Example
from strategies.frozen_backbone import FrozenBackbone

EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments" / "sequence_a.yaml"
BAR = 1.15  # times the ratio of operations
SETTINGS: list[tuple[dict[str, Any], float]] = [
    ({"soft_thoughts": 4}, 1e-2),
    ({"soft_thoughts": 4, "projector": "mlp"}, 3e-3),
    ({"soft_thoughts": 2}, 3e-2),
    ({"soft_thoughts": 4, "source": "free"}, 1e-2),
    ({"soft_thoughts": 8}, 1e-2),
    ({"soft_thoughts": 4}, 1e-3),
    ({"soft_thoughts": 8, "projector": "mlp", "hidden": 32}, 1e-2),
    ({"soft_thoughts": 1}, 1e-2),
]


@dataclass(frozen=True)
class Job:
    """Models and examples; ``batch`` of them are a step, and all are seen once."""

    name: str
    backbone: LanguageModel
    states: AssistantStates
    examples: Sequence[Example]
    batch: int

    def learn(self, settings: dict[str, Any], rate: float) -> list[float]:
        """The losses of one setting's training."""
        make_exact()
        backbone = self.backbone.copy(share_weights=True)
        parts = Parts(backbone, self.states.assistant, Softcot(Softcot.Settings(**settings)), self.states)
        parts.reasoning.build(parts, seed=0)
        strategy = FrozenBackbone(FrozenBackbone.Settings(learning_rate=rate))
        strategy.prepare(parts, seed=0)
        train = TrainConfig(steps=len(self.examples) // self.batch, global_batch_size=self.batch)
        learner = Learner(parts, strategy, train, on_step=lambda step: hand_on((step["turn"], step["step"])))
        return learner.loop(make_stream([(self.name, list(self.examples))], learner.collate)[0]).losses

    def rows(self, settings: dict[str, Any]) -> list[Encoded]:
        reasoning = Softcot(Softcot.Settings(**settings))
        phase = reasoning.final_phase()
        return [reasoning.encode(self.backbone.text, example, phase, None) for example in self.examples]

    def room(self) -> int:
        """Bytes of the prefixes of eight steps: a quarter of them is for the newest."""
        longest = max(len(row.prefix_ids) for row in self.rows({}))
        return 8 * self.batch * longest * shape_of(self.backbone.model).kv * 4

    def operations(self, chosen: Sequence[tuple[dict[str, Any], float]]) -> tuple[float, float]:
        """What has to be computed one by one, and side by side: there the columns before the thoughts only once."""
        shape, slot = shape_of(self.backbone.model), self.backbone.special["slot"]
        widths = self.states.assistant.width, self.backbone.width
        alone = sum(
            needed_for_training(shape, self.rows(settings), slot, Softcot.owned_numbers(Softcot.Settings(**settings), *widths))[
                0
            ].flops
            for settings, _ in chosen
        )
        prefixes = [row.prefix_ids.index(slot) for row in self.rows({})]
        once = operations(shape, [Call(n) for n in prefixes], causal=True)
        return alone, alone - (len(chosen) - 1) * once


def embedded(steps: int, batch: int = 32) -> Job:
    """The embedded models, and the first task of experiments/sequence_a.yaml."""
    from cl_softcot.answering.build import make_tasks
    from cl_softcot.config.loading import load_experiment

    config = load_experiment(EXPERIMENT).config
    task = make_tasks(config, "given")[0]
    backbone, assistant = (load_language_model(f"builtin:{name}") for name in ("tiny", "tiny-assistant"))
    return _warm(
        Job(
            "embedded models, first task",
            backbone,
            AssistantStates(assistant, 8),
            task.examples("train", steps * batch, 0),
            batch,
        )
    )


def long_prompts(steps: int, batch: int = 8) -> Job:
    """A random backbone of 6 x 256, prompts of 260 tokens, answers of 60."""
    size = ModelSize("llama", 6, 256, 8, 4096, kv_heads=4, feed_forward=768)
    helper = ModelSize("llama", 4, 128, 4, 4096, feed_forward=384)
    backbone, assistant = random_model(size), random_model(helper, seed=1)
    options = {"steps": 4, "step_tokens": 11, "answer_tokens": 14}
    examples = random_examples(steps * batch, size.vocabulary, question=(250, 260), **options)
    return _warm(Job("6 x 256, prompts of 260, answers of 60", backbone, AssistantStates(assistant, 8), examples, batch))


def _warm(job: Job) -> Job:
    reasoning = Softcot(Softcot.Settings())
    reasoning._states = job.states
    parts = Parts(job.backbone, job.states.assistant, reasoning, job.states)
    reasoning.register(parts, job.examples)
    job.states.states([job.states.prompt_ids(e.question, reasoning.instruction) for e in job.examples], 8)
    return job


def compare(job: Job, lanes: int, rounds: int) -> dict[str, Any]:
    """Both ways in turns; seconds of the processor, medians."""
    chosen = [SETTINGS[i % len(SETTINGS)] for i in range(lanes)]
    alone, together, losses = [], [], []

    def cold(limit: int) -> None:
        os.environ[frozen_prefix.MEMORY] = str(limit)
        frozen_prefix.forget()

    for _ in range(rounds):
        began, one_by_one = time.process_time(), []
        for settings, rate in chosen:
            cold(10**9)
            one_by_one.append(job.learn(settings, rate))
        alone.append(time.process_time() - began)
        cold(job.room())
        began = time.process_time()
        in_step = side_by_side([lambda settings=settings, rate=rate: job.learn(settings, rate) for settings, rate in chosen])
        together.append(time.process_time() - began)
        losses.append(one_by_one == in_step)
    before, after = job.operations(chosen)
    times = statistics.median(together) / statistics.median(alone)
    return {
        "job": job.name,
        "settings": lanes,
        "one_by_one_s": statistics.median(alone),
        "side_by_side_s": statistics.median(together),
        "same_losses": all(losses),
        "time_ratio": times,
        "operations_ratio": after / before,
        "share": times / (after / before),  # 1: nothing but the arithmetic counts
        "met": times <= BAR * after / before,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints a table, and returns it."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__.splitlines()[0].partition(": ")[2])
    p.add_argument("--quick", action="store_true", help="two steps, one round: does it all work?")
    p.add_argument("--json", metavar="FILE", help="where results are written")
    args = p.parse_args(argv)
    os.environ["CL_SOFTCOT_CACHE"] = "off"  # nothing from earlier runs
    make_exact()
    found = []
    print(f"{'job':40} {'K':>2} {'one by one':>11} {'side by side':>13} {'time':>6} {'operations':>11}  share of the bar")
    for make, steps in ((embedded, 24), (long_prompts, 12)):
        job = make(2 if args.quick else steps)
        job.learn(*SETTINGS[0])  # warms up
        for lanes in (4, 8):
            found.append(compare(job, lanes, 1 if args.quick else 5))
            print(_line(found[-1]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"side_by_side": found}, indent=1) + "\n", encoding="utf-8")
    return {"side_by_side": found}


def _line(row: dict[str, Any]) -> str:
    seconds = f"{row['one_by_one_s']:9.2f} s {row['side_by_side_s']:11.2f} s"
    verdict = f"{row['share']:.2f} of {BAR}, {'met' if row['met'] else 'not met'}"
    alike = "" if row["same_losses"] else "; LOSSES DIFFER"
    ratios = f"{row['time_ratio']:6.2f} {row['operations_ratio']:11.2f}"
    return f"{row['job']:40} {row['settings']:2} {seconds} {ratios}  {verdict}{alike}"


if __name__ == "__main__":
    main()
