"""Every number of a report once more, by plain code that shares nothing with the package: loops and NumPy.

``again`` takes an entry of ``report.json`` and the studies' folders, which hold run folders or one packed file of them. What it
computes from answers it reads from the predictions (or from the outcomes that are kept of them) where they are there, not from
the result that the report was made from.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import rankdata


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` with the names of the runs in every number."""
    data = json.loads((folder / "report.json").read_text())
    for entry in data["numbers"]:
        entry["runs"] = data["run_sets"][entry["runs"]]
    return data


class Plain:
    def __init__(self, studies: dict[str, Path]):
        self.studies = studies
        for name in ("result", "answers", "matrix", "kept", "questions", "outcomes", "packed"):  # each file is read once
            setattr(self, name, functools.cache(getattr(self, name)))

    # ---------------------------------------------------------------------------------------------------- one run

    def result(self, run: str) -> dict[str, Any]:
        path = self.folder(run) / "result.json"
        return json.loads(path.read_text()) if path.exists() else self.packed(run.split("/")[0])[path.parent.name]["result"]

    def packed(self, study: str) -> dict[str, Any]:
        """Each line of the packed file by its run's name, the first one, of the whole study, by an empty name."""
        with gzip.open(self.studies[study] / "runs.jsonl.gz", "rt") as file:
            return {line.get("run", ""): line for line in map(json.loads, file)}

    def is_packed(self, study: str) -> bool:
        return (self.studies[study] / "runs.jsonl.gz").exists()

    def folder(self, run: str) -> Path:
        study, inside = run.split("/", 1)
        return self.studies[study] / inside

    def answers(self, run: str, row: int) -> dict[tuple[str, str], dict[str, float]] | None:
        """(set, task) -> question -> 1 or 0."""
        path = self.folder(run) / "predictions" / f"row_{row}.jsonl"
        if not path.exists():
            return self.kept_answers(run, row)
        found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for line in map(json.loads, path.read_text().splitlines()):
            found[line["set"], line["task"]][line["id"]] = 1.0 if line["outcome"] == "right" else 0.0
        return found

    def kept_answers(self, run: str, row: int) -> dict[tuple[str, str], dict[str, float]] | None:
        rows = self.outcomes(run)
        if rows is None:
            return None
        found = {}
        for kind, tasks in rows[row].items():
            for task, letters in tasks.items():
                names = [name for name, _cluster in self.questions(run.split("/")[0])[kind][task]]
                assert len(names) == len(letters) and set(letters) <= set("rwu")
                found[kind, task] = {name: float(letter == "r") for name, letter in zip(names, letters, strict=True)}
        return found

    def outcomes(self, run: str) -> list[dict[str, dict[str, str]]] | None:
        path, study = self.folder(run) / "outcomes.json", run.split("/")[0]
        if path.exists():
            return json.loads(path.read_text())
        return self.packed(study)[path.parent.name]["outcomes"] if self.is_packed(study) else None

    def questions(self, study: str) -> dict[str, dict[str, list[list[Any]]]]:
        path = self.studies[study] / "questions.json"
        return json.loads(path.read_text()) if path.exists() else self.packed(study)[""]["questions"]

    def matrix(self, run: str) -> list[list[float]]:
        result, rows = self.result(run), []
        for i in range(len(result["tasks"]) + 1):
            answers = self.answers(run, i)
            if answers is None:
                return result["accuracy"]["matrix"]
            rows.append([sum(answers["task", t].values()) / len(answers["task", t]) for t in result["tasks"]])
        return rows

    def value(self, run: str, path: list[Any]) -> float:
        R, T = self.matrix(run), len(self.result(run)["tasks"])
        if path == ["summary", "acc"]:
            return sum(R[T]) / T
        if path == ["summary", "learning_accuracy"]:
            return sum(R[j + 1][j] for j in range(T)) / T
        if path == ["summary", "bwt/gem"]:
            return sum(R[T][j] - R[j + 1][j] for j in range(T - 1)) / (T - 1)
        if path == ["summary", "bwt/trace"]:
            return sum(R[T][j] - R[j + 1][j] for j in range(T - 1)) / T
        if path == ["summary", "bwt/continuum"]:
            return 2 / (T * (T - 1)) * sum(R[i][j] - R[j + 1][j] for i in range(2, T + 1) for j in range(i - 1))
        best_of = {"chaudhry": (0, T), "chaudhry_from_learned": (1, T), "mammoth": (1, T + 1)}
        if path[0] == "summary" and path[1].removeprefix("forgetting/") in best_of:
            own, end = best_of[path[1].removeprefix("forgetting/")]
            return sum(max(R[i][j] for i in range(j * own + 1, end)) - R[T][j] for j in range(T - 1)) / (T - 1)
        if path == ["summary", "forgetting/avalanche"]:
            return sum(R[j + 1][j] - R[T][j] for j in range(T - 1)) / (T - 1)
        if path[:2] == ["accuracy", "matrix"]:
            return R[path[2]][path[3]]
        if path[0] == "summary" and path[1].startswith("flips/"):
            return self.flips(run, path[1])
        if path[:2] == ["retention", "as_used"]:
            return self.kept(run, path[2], path[3])
        return self.inside(self.result(run), path)

    def inside(self, found: Any, path: list[Any]) -> Any:
        for place, step in enumerate(path):
            if step == "*":
                return float(np.mean([self.inside(each, path[place + 1 :]) for each in found.values()]))
            if isinstance(step, str) and step.endswith("/*"):  # no general text: the mean over the prompt sets
                return float(np.mean([v for key, v in found.items() if key.split("/")[0] == step[:-2]]))
            found = found[step]
        return found

    def of(self, run: str, entry: dict[str, Any]) -> float:
        """What an entry says of one run: the number at its path, less another, as a share of a third."""
        value, more = self.value(run, entry["path"]), entry.get("more", {})
        value -= self.value(run, more["minus"]) if "minus" in more else 0.0
        return value / self.value(run, more["over"]) if "over" in more else value

    def flips(self, run: str, name: str) -> float:
        """Less what guessing among k options explains: right by luck before, wrong after."""
        result = self.result(run)
        T, values = len(result["tasks"]), []
        for j, task in enumerate(result["tasks"]):
            start = 0 if name.endswith("since_base") else j + 1
            if start == T:
                continue
            before, after = self.answers(run, start), self.answers(run, T)
            if before is None or after is None:  # nothing was kept of the answers
                return result["summary"][name]
            pairs = [(before["task", task][q], after["task", task][q]) for q in before["task", task]]
            wanted = (1.0, 0.0) if "forgotten" in name else (0.0, 1.0)
            share = sum(pair == wanted for pair in pairs) / len(pairs)
            options = result["flips"][task].get("n_options")
            wrong = [sum(not pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
            values.append(max(0.0, share - (wrong[0] * wrong[1] / (options - 1) if options else 0.0)))
        return sum(values) / len(values)

    def kept(self, run: str, row: int, key: str) -> float:
        result = self.result(run)
        row = row % (len(result["tasks"]) + 1)
        answers, mine = self.answers(run, row), result["retention"]
        if answers is None:
            return mine["as_used"][row][key]
        known = {f: np.mean(list(answers["retention", f].values())) for f in mine["families"]}
        chosen = {"all": mine["families"], "same_family": mine["same_family"]}
        chosen["unrelated"] = [f for f in mine["families"] if f not in mine["same_family"]]
        return float(np.mean([known[f] for f in chosen[key]]))

    # ------------------------------------------------------------------------------------------------- several runs

    def again(self, entry: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, float | None]:
        """The value, and what of the interval can be had in closed form."""
        return getattr(self, "_" + entry["how"].replace(" ", "_").replace(",", "").lower())(entry, entries)

    def _mean(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        values = [self.of(run, entry) for run in entry["runs"]]
        found = {"value": float(np.mean(values))}
        if entry["covers"] == "runs":
            half = self.half_width(entry["runs"], values)
            found |= {"low": found["value"] - half, "high": found["value"] + half}
        return found

    def half_width(self, runs: list[str], values: list[float]) -> float:
        """Student's, of a mean over strata of task orders with at least three runs each; else of all runs together."""
        strata: dict[str, list[float]] = defaultdict(list)
        for run, value in zip(runs, values, strict=True):
            strata[self.result(run)["order"]].append(value)
        groups = list(strata.values()) if min(map(len, strata.values())) >= 3 else [values]
        N = sum(map(len, groups))
        parts = [(len(g) / N) ** 2 * np.var(g, ddof=1) / len(g) for g in groups]
        if not sum(parts):
            return 0.0
        df = sum(parts) ** 2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
        return float(stdtrit(df, 0.975) * math.sqrt(sum(parts)))

    def _interquartile_mean(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        scores = sorted(x for run in entry["runs"] for x in self.matrix(run)[-1])
        cut = len(scores) // 4
        return {"value": float(np.mean(scores[cut : len(scores) - cut]))}

    def _share_above(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        scores = [x for run in entry["runs"] for x in self.matrix(run)[-1]]
        return {"value": sum(x > entry["more"]["above"] for x in scores) / len(scores)}

    def _intransigence(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        mine = [run for run in entry["runs"] if not self.result(run)["reference"]]
        values = [self.intransigence(run, entry["runs"]) for run in mine]
        half = self.half_width(mine, values)
        return {"value": float(np.mean(values)), "low": np.mean(values) - half, "high": np.mean(values) + half}

    def intransigence(self, run: str, runs: list[str]) -> float:
        """Against the reference among ``runs`` that has the run's seed and order: joint at its end, single tasks as learned."""
        own, R = self.result(run), self.matrix(run)
        others = [o for o in runs if self.result(o)["reference"] and self.result(o)["seed"] == own["seed"]]
        other = next((o for o in others if self.result(o)["order"] == own["order"]), others[0])
        theirs, tasks = self.matrix(other), self.result(other)["tasks"]
        joint = self.result(other)["reference"] == "joint"
        best = {task: theirs[-1][j] if joint else theirs[j + 1][j] for j, task in enumerate(tasks)}
        return sum(best[task] - R[j + 1][j] for j, task in enumerate(own["tasks"])) / len(tasks)

    # -------------------------------------------------------------------------------------------------- differences

    def differences(self, entry: dict[str, Any]) -> list[tuple[Any, str, str, float]]:
        """(run, task, question, a - b) of every pair; ``runs`` holds those of a, then those of b."""
        half, kind = len(entry["runs"]) // 2, "task" if entry["path"][0] == "summary" else "retention"
        found = []
        for a, b in zip(entry["runs"][:half], entry["runs"][half:], strict=True):
            key = (self.result(a)["seed"], self.result(a)["order"])
            assert key == (self.result(b)["seed"], self.result(b)["order"])
            if entry["more"]["basis"] == "runs":
                found.append((key, "all", "", self.of(a, entry) - self.of(b, entry)))
                continue
            left, right = (self.scores(run, kind, "minus" in entry["more"]) for run in (a, b))
            found += [(key, *question, score - right[question]) for question, score in left.items()]
        return found

    def clusters(self, run: str, kind: str) -> dict[tuple[str, str], Any]:
        """(task, question) -> what it shares with others; empty where questions stand for themselves."""
        path = self.folder(run) / "predictions" / "row_0.jsonl"
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            return {(x["task"], x["id"]): x["meta"]["cluster"] for x in lines if x["set"] == kind and "cluster" in x["meta"]}
        tasks = self.questions(run.split("/")[0])[kind]
        return {(task, q): cluster for task, names in tasks.items() for q, cluster in names if cluster is not None}

    def scores(self, run: str, kind: str, lost: bool) -> dict[tuple[str, str], float]:
        """(task, question) -> right at the end; or right before learning minus right at the end."""
        now, base = (self.answers(run, row) for row in (len(self.result(run)["tasks"]), 0))
        return {
            (task, q): base[which, task][q] - right if lost else right
            for (which, task), asked in now.items()
            if which == kind
            for q, right in asked.items()
        }

    def _difference_in_a_run(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        ds = [self.of(run, entry) for run in entry["runs"]]
        if len(ds) < 2 or np.ptp(ds) < 1e-9:
            return {"value": float(np.mean(ds)), "se": None}
        se = float(np.std(ds, ddof=1) / math.sqrt(len(ds)))
        half = stdtrit(len(ds) - 1, 0.975) * se
        return {"value": float(np.mean(ds)), "low": np.mean(ds) - half, "high": np.mean(ds) + half, "se": se}

    def _paired_difference(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        rows = self.differences(entry)
        by_task = defaultdict(list)
        for _run, task, _question, d in rows:
            by_task[task].append(d)
        value = float(np.mean([np.mean(ds) for ds in by_task.values()]))
        if entry["more"]["basis"] == "runs":
            ds = by_task["all"]
            if np.ptp(ds) < 1e-9:  # all runs alike: nothing is known about the spread
                return {"value": value, "se": None}
            se = np.std(ds, ddof=1) / math.sqrt(len(ds))
            half = stdtrit(len(ds) - 1, 0.975) * se
            return {"value": value, "low": value - half, "high": value + half, "se": se}
        return {"value": value, "se": self.clustered(rows, by_task)}

    @staticmethod
    def clustered(rows: list[tuple[Any, str, str, float]], by_task: dict[str, list[float]]) -> float:
        """Two-way: questions (each task for itself) and runs, less what both count."""
        means = {task: float(np.mean(ds)) for task, ds in by_task.items()}
        T = len(means)
        influence = [((d - means[t]) / (T * len(by_task[t])), run, t, q) for run, t, q, d in rows]

        def variance(key: Any, inside: bool) -> float:
            sums: dict[Any, float] = defaultdict(float)
            for x, run, task, question in influence:
                sums[key(run, task, question)] += x
            if not inside:
                return len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values())
            total = 0.0
            for task in means:
                mine = [s for k, s in sums.items() if k[0] == task]
                total += len(mine) / (len(mine) - 1) * sum(s * s for s in mine)
            return total

        questions = variance(lambda run, task, question: (task, question), True)
        units = variance(lambda run, task, question: (task, question, run), True)
        runs = variance(lambda run, task, question: run, False) if len({row[0] for row in rows}) > 1 else 0.0
        for task, ds in by_task.items():  # all alike: as much as Wilson's interval leaves open
            if max(ds) == min(ds):
                n, z = len({row[2] for row in rows if row[1] == task}), 1.959963984540054
                unseen = z * z / (n + z * z)
                questions += (unseen * (1 + abs(ds[0])) / T / z) ** 2
        return math.sqrt(questions + max(runs - units, 0.0))

    def _p_holm(self, entry: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, float | None]:
        """From the uncorrected p of the same lines; these by Student where whole runs are compared."""
        if entry["more"]["basis"] == "runs":
            within = "a" not in entry["more"]  # two numbers of the same runs
            ds = [self.of(run, entry) for run in entry["runs"]] if within else [d for *_, d in self.differences(entry)]
            se = np.std(ds, ddof=1) / math.sqrt(len(ds))
            p = 2 * stdtr(len(ds) - 1, -abs(np.mean(ds)) / se) if se > 1e-10 else 1.0
            if np.ptp(ds) < 1e-9 and abs(np.mean(ds)) > 1e-9:  # all runs alike: the sign test
                p = 2.0 ** (1 - len(ds))
            assert math.isclose(p, entry["more"]["p"], rel_tol=1e-9, abs_tol=1e-12), entry
        same = [e for e in entries if (e["table"], e["how"], e["path"]) == (entry["table"], entry["how"], entry["path"])]
        ordered = sorted(e["more"]["p"] for e in same)
        adjusted, largest = {}, 0.0
        for rank, p in enumerate(ordered):
            largest = max(largest, min(1.0, p * (len(ordered) - rank)))
            adjusted[p] = largest
        return {"value": adjusted[entry["more"]["p"]]}

    def _smallest_difference_that_would_have_been_shown(
        self, entry: dict[str, Any], entries: list[Any]
    ) -> dict[str, float | None]:
        if entry["more"]["basis"] != "runs":
            return {"value": None}
        lines = [e for e in entries if (e["table"], e["how"], e["path"]) == (entry["table"], "p, Holm", entry["path"])]
        ds = [d for *_, d in self.differences(entry)]
        return {"value": stdtrit(len(ds) - 1, 1 - 0.025 / len(lines)) * np.std(ds, ddof=1) / math.sqrt(len(ds))}

    # ------------------------------------------------------------------------------------------------------ the law

    def point(self, run: str, inputs: str, outcome: str, view: str, i: int) -> dict[str, float]:
        result = self.result(run)
        kept = [self.kept(run, row, "all") for row in range(len(result["tasks"]) + 1)]
        R, name = self.matrix(run), result["tasks"][i - 1] if inputs == "new_task" else "general"
        own = {"base_abilities": kept[0] - kept[i]}
        own["earlier_tasks"] = float(np.mean([R[j][j - 1] - R[i][j - 1] for j in range(1, i)])) if i > 1 else math.nan
        kl = {f"{way}_kl": result["drift"][view][i][f"{way}_kl/{name}"] for way in ("forward", "reverse")}
        return {
            **kl,
            "forgetting": own[outcome],
            "accuracy": R[i][i - 1],
            "method": result["method"],
            "task": result["tasks"][i - 1],
        }

    def _point(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        _law, *where, name = entry["path"]
        return {"value": self.point(entry["runs"][0], *where)[name]}

    def _law(self, entry: dict[str, Any], _: Any) -> dict[str, float | None]:
        _law, inputs, outcome, view, *what = entry["path"]
        points = []
        for run in entry["runs"]:
            mine = [self.point(run, inputs, outcome, view, i) for i in range(1, len(self.result(run)["tasks"]) + 1)]
            moved = any(p["forgetting"] or p["forward_kl"] or p["reverse_kl"] for p in mine)
            points += [p | {"family": self.family(run), "experience": i} for i, p in enumerate(mine, start=1) if moved]
        if what[0] == "accuracy_matched":
            return {"value": matched(points, *what[1:])}
        label, direction, kind, *form = what
        chosen = [p for p in points if label in ("all methods", p["family"])]
        x, y = (np.array([p[key] for p in chosen]) for key in (direction, "forgetting"))
        if kind == "spearman":
            return {"value": float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])}
        if kind == "r2":
            return {"value": r2(y, fitted(form[0], x, y)(x))}
        names, predicted = np.array([p["method"] for p in chosen]), np.zeros(len(y))
        for name in set(names):
            predicted[names == name] = fitted(form[0], x[names != name], y[names != name])(x[names == name])
        return {"value": r2(y, predicted)}

    def family(self, run: str) -> str:
        result = self.result(run)
        return result["strategy"]["name"] + (" per task" if result["per_task"] else "")


def r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def fitted(form: str, x: np.ndarray, y: np.ndarray) -> Any:
    if form == "quadratic":
        coefficients = np.polyfit(x, y, 2)
        return lambda new: np.polyval(coefficients, new)
    if form == "through_zero":
        b, c = np.linalg.lstsq(np.stack([x, x**2], 1), y, rcond=None)[0]
        return lambda new: b * new + c * new**2
    blocks: list[list[float]] = []  # pool adjacent violators: [mean, weight, first place, last place]
    for place in np.unique(x):
        blocks.append([float(y[x == place].mean()), float((x == place).sum()), place, place])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            m, w, _, last = blocks.pop()
            m0, w0, first, _ = blocks.pop()
            blocks.append([(m0 * w0 + m * w) / (w0 + w), w0 + w, first, last])
    places = np.unique(x)
    values = [next(b[0] for b in blocks if b[2] <= place <= b[3]) for place in places]
    return lambda new: np.interp(new, places, values)


def matched(points: list[dict[str, Any]], a: str, b: str, what: str) -> float:
    """Mean over the accuracies that both cross; the runs of a method on a task, by accuracy, are one line."""
    targets = np.round(np.arange(0.02, 1.001, 0.02), 2)
    sides = []
    for method in (a, b):
        lines = []
        for experience, task in {(p["experience"], p["task"]) for p in points if p["method"] == method}:
            mine = [p for p in points if (p["method"], p["experience"], p["task"]) == (method, experience, task)]
            places = sorted({p["accuracy"] for p in mine})
            means = [np.mean([p[what] for p in mine if p["accuracy"] == place]) for place in places]
            if len(places) > 1:
                lines.append([crossing(places, means, target) for target in targets])
        columns = [[v for v in column if v is not None] for column in zip(*lines, strict=True)]
        sides.append([np.mean(column) if column else None for column in columns])
    both = [left - right for left, right in zip(*sides, strict=True) if left is not None and right is not None]
    return float(np.mean(both))


def crossing(places: list[float], means: list[float], target: float) -> float | None:
    for (x0, y0), (x1, y1) in pairwise(zip(places, means, strict=True)):
        if x0 <= target <= x1:
            return y0 + (y1 - y0) * (target - x0) / (x1 - x0)
    return None
