"""Keeps the results of a finished experiment in the repository: ``python tools/keep_results.py runs/sequence_a_seeds``.

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
    unfinished = [p.name for p in (folder / "runs").iterdir() if not (p / "result.json").exists()]
    if not runs or unfinished:
        raise SystemExit(f"{folder} is not a finished experiment: {', '.join(unfinished) or 'no results'}")
    target = KEPT / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("config.yaml", "experiment.json", "table.txt", "comparison.png"):
        shutil.copy(folder / name, target / name)
    for result in runs:
        place = target / "runs" / result.parent.name
        place.mkdir(parents=True)
        shutil.copy(result, place / "result.json")
    return target


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(keep(Path(argument)))
