"""Keeps the results of an experiment in the repository: ``python tools/keep_results.py runs/sequence_a_seeds``.

Copies what a reader needs to check a number (resolved config, provenance, every ``result.json``, table and figure), not the
predictions and checkpoints. Kept results are never edited; a new run replaces the folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

KEPT = Path(__file__).parents[1] / "experiments" / "results"


def keep(folder: Path) -> Path:
    runs = sorted((folder / "runs").glob("*/result.json"))
    unfinished = sorted(p.name for p in (folder / "runs").iterdir() if not (p / "result.json").exists())
    if not runs:
        raise SystemExit(f"{folder} holds no results")
    target = KEPT / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("config.yaml", "experiment.json", "table.txt", "comparison.png"):
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)
    if unfinished:  # nothing is hidden: a reader sees which runs are missing
        (target / "unfinished.txt").write_text("".join(f"{name}\n" for name in unfinished))
    for result in runs:
        place = target / "runs" / result.parent.name
        place.mkdir(parents=True)
        shutil.copy(result, place / "result.json")
    return target


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(keep(Path(argument)))
