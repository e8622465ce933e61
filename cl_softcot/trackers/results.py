"""Result files as rows: finding them, one colour a method, and the numbers that the tables show.

A run's `result.json` is written last, so a run folder without one belongs to a run that is not finished.
"""

from __future__ import annotations

import colorsys
import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.reports import kept

FOLDER = "_folder"  # where a loaded result came from; never part of the file itself

# Dark enough on white and told apart by colour-blind eyes in the first seven (after Okabe and Ito); grey is
# kept for methods that train nothing, so that the untouched base looks the same in every chart.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C510A", "#1B1B1B", "#C51B7D",
    "#4D9221", "#B2182B", "#01665E", "#6A3D9A", "#B8860B", "#2166AC", "#DE77AE", "#5AAE61", "#A6611A", "#3B3EAC",
)  # fmt: skip
GREYS = ("#7F7F7F", "#A9A9A9", "#5B5B5B", "#C4C4C4")


def is_trained(result: Mapping[str, Any]) -> bool:
    """Whether the method of this result learned anything at all."""
    return bool((result.get("cost") or {}).get("trained_parameters")) and _strategy(result) != "zero_shot"


def _strategy(result: Mapping[str, Any]) -> str:
    strategy = result.get("strategy") or {}
    return strategy if isinstance(strategy, str) else str(strategy.get("name", ""))


def palette(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method, by its place in the experiment's list: `{method: "#rrggbb"}`.

    Appending methods to an experiment changes no colour of the earlier ones.
    """
    colors: dict[str, str] = {}
    greys = trained = 0
    for method in dict.fromkeys(methods):
        if "zero_shot" in method or "zero-shot" in method:
            colors[method] = GREYS[greys % len(GREYS)]
            greys += 1
        else:
            colors[method] = COLORS[trained] if trained < len(COLORS) else _hashed_color(method)
            trained += 1
    return colors


def _hashed_color(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    rgb = colorsys.hls_to_rgb(digest[0] / 255, 0.3 + 0.25 * digest[1] / 255, 0.4 + 0.5 * digest[2] / 255)
    return "#" + "".join(f"{round(255 * x):02X}" for x in rgb)


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


# --- the numbers of a row --------------------------------------------------------------------------


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns of the final table for one run; None where a number is not defined."""
    summary, cost = result.get("summary") or {}, result.get("cost") or {}
    retention = ((result.get("retention") or {}).get("as_used") or [{}])[-1] or {}
    drift = ((result.get("drift") or {}).get("as_used") or [{}])[-1] or {}
    return {
        # What a method did not learn it cannot have learned well: zero-shot rows have no such number.
        "learned": summary.get("learning_accuracy") if is_trained(result) else None,
        "accuracy": summary.get("acc"),
        "bwt": summary.get("bwt/gem"),
        "forgetting": summary.get("forgetting/chaudhry"),
        "retention": retention.get("all"),
        "drift": drift_number(drift),
        "parameters": cost.get("trained_parameters"),
        "tokens": cost.get("tokens_per_answer"),
        "train_seconds": cost.get("train_seconds"),
        "evaluate_seconds": cost.get("evaluate_seconds"),
    }


def drift_number(row: Mapping[str, float | None]) -> float | None:
    """KL(base || model) on general text; the mean over the prompt sets where no general text was measured."""
    if row.get("forward_kl/general") is not None:
        return row["forward_kl/general"]
    values = [v for k, v in row.items() if k.startswith("forward_kl/") and v is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Spread:
    """A number over the runs of a method: their mean, standard deviation (None for one run) and count."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the values that exist; None if there are none."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def method_numbers(results: Sequence[Mapping[str, Any]]) -> dict[str, Spread | None]:
    """`numbers` of all runs of one method, each as a `Spread`."""
    rows = [numbers(result) for result in results]
    return {key: spread(row[key] for row in rows) for key in numbers({})}


def drift_title(results: Iterable[Mapping[str, Any]]) -> str:
    """What the drift column holds, in words."""
    rows = [((r.get("drift") or {}).get("as_used") or [{}])[-1] or {} for r in results]
    general = any("forward_kl/general" in row for row in rows)
    return "KL(base‖model) on general text" if general else "mean KL(base‖model) over the prompt sets"
