"""Final scores of the embedded models: ``python -m cl_softcot.tiny.score``. Greedy answers, generated and judged, 500 fresh
examples a family (all that there are of the facts), with steps and without, and at a harder setting; kept in ``scores.json``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from cl_softcot.files import atomic_write_json, read_json
from cl_softcot.models.builtin import HERE, MODELS
from cl_softcot.tiny.corpus import FAMILIES

# One notch beyond what pretraining has shown.
HARDER = {
    "graph": {"hops": 4, "branches": 1},
    "deduction": {"hops": 5},
    "arithmetic": {"events": 5},
    "dates": {"events": 4},
    "lists": {"events": 4},
    "tracking": {"events": 4},
    "facts": {"lookups": 3},
}
N = 500


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cl_softcot.tiny.score", description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="folder with the models' folders")
    parser.add_argument("-n", type=int, default=N, help="examples a family")
    parser.add_argument("models", nargs="*", default=list(MODELS.values()), help="which models")
    args = parser.parse_args(argv)
    import torch

    from cl_softcot.models.language_model import load_language_model

    torch.set_num_threads(1)
    path = args.folder / "scores.json"
    found = read_json(path) if path.exists() else {}  # scores of models that were not asked for stay
    for name in args.models:
        started = time.time()
        found[name] = score(load_language_model(str(args.folder / name)), args.n)
        print(f"{name} ({time.time() - started:.0f} s)")
        for mode, families in found[name].items():
            print(f"  {mode:<12}" + "  ".join(f"{family} {row['accuracy']:.3f}" for family, row in families.items()))
        atomic_write_json(path, found)
    return 0


def score(model: Any, n: int = N) -> dict[str, dict[str, Any]]:
    """{"cot" | "direct" | "alternative" | "harder": {family: {"accuracy", "n", "interval", "unanswered"}}} on the test split.

    ``alternative`` asks for the alternative convention without saying so: what is left for a stream to teach. Facts have the
    rows ``facts`` (public) and ``facts_private``.
    """
    jobs: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {"cot": {}, "direct": {}, "alternative": {}, "harder": {}}
    for family, kind in FAMILIES.items():
        jobs["cot"][family] = jobs["direct"][family] = (family, {})
        jobs["alternative"][family] = (family, {"convention": list(kind.conventions)[1]})
        jobs["harder"][family] = (family, HARDER[family])
    for mode in ("cot", "direct"):
        jobs[mode]["facts_private"] = ("facts", {"store": "private"})
    return {mode: {row: _score(model, mode, *what, n) for row, what in rows.items()} for mode, rows in jobs.items()}


def _score(model: Any, mode: str, family: str, settings: dict[str, Any], n: int) -> dict[str, Any]:
    from cl_softcot.answering.policy import BasePolicy
    from cl_softcot.metrics.intervals import wilson_interval
    from cl_softcot.registry import find

    task = FAMILIES[family](FAMILIES[family].Settings(**settings), family)
    examples = _fresh(task, n)
    reasoning = find("reasoning", "direct" if mode == "direct" else "cot")()
    policy = BasePolicy(model, batch_size=500, reasoning=reasoning)
    verdicts = [task.judge(e, g.text).outcome for e, g in zip(examples, policy.generate(examples, 128), strict=True)]
    right = verdicts.count("right")
    interval = [round(x, 4) for x in wilson_interval(right, len(verdicts))]
    return {
        "accuracy": right / len(verdicts),
        "n": len(verdicts),
        "interval": interval,
        "unanswered": verdicts.count("unanswered"),
    }


def _fresh(task: Any, n: int) -> list[Any]:
    """``n`` test examples; of a closed set that has fewer (the facts), its test and validation examples, as many as there are."""
    if n <= (task.count("test") or n):
        return task.examples("test", n, seed=1)
    shares = (("test", int(n * 0.7)), ("valid", int(n * 0.3)))
    return [e for split, share in shares for e in task.examples(split, min(share, task.count(split)), seed=1)]


if __name__ == "__main__":
    sys.exit(main())
