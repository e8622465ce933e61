"""Result files: finding them, reading them, grouping them by method.

A run's `result.json` is written last, so a run folder without one belongs to a run that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.results import kept

FOLDER = "_folder"  # where a loaded result came from; never part of the file itself


def is_trained(result: Mapping[str, Any]) -> bool:
    """Whether the method of this result learned anything at all."""
    return bool((result.get("cost") or {}).get("trained_parameters")) and _strategy(result) != "zero_shot"


def _strategy(result: Mapping[str, Any]) -> str:
    strategy = result.get("strategy") or {}
    return strategy if isinstance(strategy, str) else str(strategy.get("name", ""))


# --- finding ---------------------------------------------------------------------------------------


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """The results of the finished runs of an experiment folder (or of one run folder), also of a kept one, whose runs are packed.

    Each has its run folder under the key `"_folder"`. The order is that of the run folders' names; give
    `order_like` the experiment's methods for theirs.

    Raises:
        UserError: if there is no such folder, or a result cannot be read.
    """
    results = []
    for run in run_folders(folder):
        result = kept.result(run)
        if result is not None:
            if not isinstance(result, dict) or "method" not in result:
                raise UserError("not the result of a run", where=str(run / "result.json"))
            results.append({**result, FOLDER: str(run)})
    return results


def run_folders(folder: str | Path) -> list[Path]:
    """The run folders in `folder`: itself, or `runs/*` of an experiment, or those of all experiments in it.

    Packed runs of kept results are told by the folders that they had, which are not there; `kept.result` reads either.

    Raises:
        UserError: if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir() and kept.result(folder) is not None:
        return [folder]
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=str(folder), fix="Give the folder that a run printed, e.g. runs/sequence_a."
        )
    if _is_run(folder):
        return [folder]
    for pattern, studies in (("runs/*", [folder]), ("*", []), ("*/runs/*", sorted(folder.glob("*")))):
        found = {path for path in folder.glob(pattern) if path.is_dir() and _is_run(path)}
        found |= {run for study in studies for run in kept.packed_runs(study)}
        if found:
            return sorted(found)
    raise UserError(
        "no run in this folder (a run has an events.jsonl or a result.json; kept runs are in a runs.jsonl.gz)",
        where=str(folder),
        fix="Give an experiment's folder, e.g. runs/sequence_a, or one of the folders in its runs/.",
    )


def _is_run(folder: Path) -> bool:
    return (folder / "events.jsonl").is_file() or (folder / "result.json").is_file()


def order_like(results: Iterable[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Results sorted by the place of their method in `methods`, then by task order and seed."""
    place = {method: i for i, method in enumerate(methods)}
    return sorted(results, key=lambda r: (place.get(r["method"], len(place)), str(r.get("order")), r.get("seed", 0)))


def by_method(results: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of each method (seeds and orders together), methods in the order of their first result."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["method"], []).append(result)
    return groups
