"""`report.html`: what a sweep found, on one page that needs nothing else (drawings inside), and the same in MLflow."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_text, read_json
from cl_softcot.printable import printable
from cl_softcot.sweep.config import SearchPlan, SweepConfig
from cl_softcot.sweep.samplers import chosen_pruner
from cl_softcot.sweep.space import shown
from cl_softcot.sweep.status import best
from cl_softcot.sweep.storage import shown_address
from cl_softcot.sweep.trials import Counts, Record, Search

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #1b1b1b }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: .8em }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
td, th { padding: .2em .7em; text-align: right }
th { border-bottom: 2px solid #999 } tr:nth-child(even) { background: #f4f4f4 } td.text, th.text { text-align: left }
pre { background: #f4f4f4; padding: .7em; overflow-x: auto; white-space: pre-wrap } img { max-width: 100% }
"""


def write_report(sweep: SweepConfig, searches: Sequence[Search], *, send: bool = True) -> Path:
    """Writes the page, of what is known by now, and sends it to MLflow where the experiment does that. Returns its path."""
    found = {search.plan.study_name: search.records() for search in searches}
    sections = [_section(search, found[search.plan.study_name]) for search in searches]
    body = "\n".join([_head(sweep, searches, found), *sections, _how_to_look(sweep)])
    title = _escape(sweep.title)
    start = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    page = f"{start}<body>{body}</body></html>\n"
    path = sweep.folder / "report.html"
    atomic_write_text(path, page)
    if send:
        _send(sweep, searches, found, page)
    return path


# --- the page ------------------------------------------------------------------------------------------------


def _head(sweep: SweepConfig, searches: Sequence[Search], found: dict[str, list[Record]]) -> str:
    goals = ", ".join(f"{way} <code>{_escape(name)}</code>" for name, way in sweep.objectives.items())
    bounds = ", ".join(f"{_escape(n)} {_bound(b)}" for n, b in sweep.constraints.items())
    future = (
        "<b>The tuner saw the future</b>: settings were chosen by scores on the whole stream that is tested."
        if sweep.select_on.saw_the_future
        else f"The tuner did not see the whole stream: settings were chosen on {_escape(str(sweep.select_on))}."
    )
    lines = [
        f"<h1>{_escape(sweep.title[0].upper() + sweep.title[1:])}</h1>",
        f"<p>{goals}" + (f"; within {bounds}" if bounds else "") + ".</p>",
    ]
    lines.append(
        f"<p>{future} Trials are judged on validation data, means over seeds {', '.join(map(str, sweep.seeds))}; the winner's "
        "score on test data was computed once, at the end.</p>"
    )
    if len(searches) > 1:
        rows = []
        for search in searches:
            winner = _winners(search.plan)
            for w in winner:
                values = [f"{v:.4g}" for v in w["validation"].values()] + [_with_interval(w, name) for name in w["test"]]
                rows.append([search.plan.study_name, shown(w["params"]), *values])
        names = list(sweep.objectives)
        lines.append(_table(["search", "best", *(f"{n}, valid" for n in names), *(f"{n}, test" for n in names)], rows, text=2))
    return "\n".join(lines)


def _escape(text: object) -> str:
    return html.escape(printable(str(text)))


def _bound(bound: Any) -> str:
    said = [f"at least {bound.at_least:g}"] if bound.at_least is not None else []
    return " and ".join(said + ([f"at most {bound.at_most:g}"] if bound.at_most is not None else []))


def _winners(plan: SearchPlan) -> list[dict[str, Any]]:
    path = plan.folder / "winner.json"
    return read_json(path)["winners"] if path.exists() else []


def _with_interval(winner: dict[str, Any], name: str) -> str:
    value, around = winner["test"][name], winner["test_intervals"].get(name)
    return f"{value:.4g}" + (f" [{around[0]:.3g}, {around[1]:.3g}]" if around else "")


def _section(search: Search, found: list[Record]) -> str:
    plan, counts = search.plan, Counts.of(found)
    complete = [r for r in found if r.state == "complete"]
    top = {r.number for r in best(search, found)}
    told = ", ".join(f"{getattr(counts, name)} {name}" for name in Counts.__dataclass_fields__ if getattr(counts, name))
    parts = [f"<h2>{_escape(plan.study_name)}</h2>", f"<p>Trials: {told or 'none yet'}.</p>"]
    parts += [_winner_text(plan, winner) for winner in _winners(plan)]
    if complete:
        several = len(plan.sweep.objectives) > 1
        parts += [_front(plan, complete, top)] if several else [_history(plan, complete)]
        parts += [_slices(plan, complete, name) for name in plan.sweep.objectives]
        parts.append(_importances(search, complete))
        parts.append("" if several else _intermediate(plan, found))
    parts.append(_all_trials(plan, found, top))
    parts.append(_failures(plan, found))
    return "\n".join(filter(None, parts))


def _winner_text(plan: SearchPlan, winner: dict[str, Any]) -> str:
    rows = [[name, f"{winner['validation'][name]:.4g}", _with_interval(winner, name)] for name in plan.sweep.objectives]
    table = _table(["objective", "validation (chosen by it, so flattered)", "test [95 % interval]"], rows, text=1)
    tested = len(read_json(plan.folder / "winner.json")["tested"])
    again = f"<p>The test split was looked at for {tested} trials of this search.</p>" if tested > 1 else ""
    return (
        f"<h3>Trial {winner['number']}: {_escape(shown(winner['params']))}</h3>{table}{again}"
        f"<pre>{_escape(winner['command'])}</pre>"
    )


def _history(plan: SearchPlan, complete: list[Record]) -> str:
    name, way = next(iter(plan.sweep.objectives.items()))
    better = max if way == "maximize" else min
    figure, axes = _figure()
    ordered = sorted(complete, key=lambda r: r.last.datetime_complete)
    points = [(i, r.last.values[0], r.feasible) for i, r in enumerate(ordered)]
    inside, outside = ([(i, v) for i, v, ok in points if ok is wanted] for wanted in (True, False))
    if outside:
        axes.scatter(*zip(*outside, strict=True), color=GREY, s=22, marker="x", label="outside the constraints")
    if inside:
        axes.scatter(*zip(*inside, strict=True), color=BLUE, s=22)
        so_far = list(itertools.accumulate((v for _, v in inside), better))
        axes.step([i for i, _ in inside], so_far, where="post", color=ORANGE, label="best so far")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="complete trials, in the order they ended", ylabel=name)
    axes.legend(frameon=False)
    return "<h3>History</h3>" + _image(figure)


def _front(plan: SearchPlan, complete: list[Record], top: set[int]) -> str:
    """Pairs of objectives; the front with the intervals of both."""
    names = list(plan.sweep.objectives)
    drawn = []
    for j in range(1, len(names)):
        figure, axes = _figure()
        for r in complete:
            x, y = r.last.values[0], r.last.values[j]
            if r.number in top:
                around = _intervals(plan, r)
                axes.errorbar(
                    x,
                    y,
                    xerr=_arms(x, around.get(names[0])),
                    yerr=_arms(y, around.get(names[j])),
                    fmt="o",
                    color=ORANGE,
                    capsize=2,
                )
                axes.annotate(f" {r.number}", (x, y), fontsize=8)
            else:
                axes.scatter(x, y, color=BLUE if r.feasible else GREY, s=18, marker="o" if r.feasible else "x")
        axes.set(
            xlabel=f"{names[0]} ({plan.sweep.objectives[names[0]]})", ylabel=f"{names[j]} ({plan.sweep.objectives[names[j]]})"
        )
        axes.set_yscale(_scale([r.last.values[j] for r in complete]))
        drawn.append(_image(figure))
    return (
        "<h3>Pareto front</h3><p>Orange: no other trial is better in all objectives. Bars: 95 % intervals, over examples with "
        "one seed and over seeds with several.</p>" + "".join(drawn)
    )


def _scale(values: Sequence[float]) -> str:
    """Logarithmic where a few large values would press the others flat."""
    return "log" if min(values) > 0 and max(values) > 50 * min(values) else "linear"


def _intervals(plan: SearchPlan, record: Record) -> dict[str, Any]:
    path = plan.trial_folder(record.number) / "trial.json"
    return (read_json(path).get("intervals") or {}) if path.exists() else {}


def _arms(value: float, around: list[float] | None) -> list[list[float]] | None:
    return [[max(0.0, value - around[0])], [max(0.0, around[1] - value)]] if around else None


def _slices(plan: SearchPlan, complete: list[Record], objective: str) -> str:
    """The objective over each key of the space."""
    import matplotlib.pyplot as plt

    place = list(plan.sweep.objectives).index(objective)
    keys = list(plan.space)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2, 2.6 * rows), sharey=True, squeeze=False, layout="constrained")
    for axis, key in zip(axes.flat, keys, strict=False):
        space = plan.space[key]
        points = [(r.last.params[key], r.last.values[place], r.number) for r in complete if key in r.last.params]
        known = space.choices
        if known is not None:  # side by side in their own order, whatever trial came first
            points = [(str(x), y, n) for x, y, n in sorted(points, key=lambda p: known.index(p[0]))]
        if points:
            xs, ys, numbers = zip(*points, strict=True)
            axis.scatter(xs, ys, c=numbers, cmap="viridis", s=20, vmin=0, vmax=max(r.number for r in complete))
        if space.log:
            axis.set_xscale("log")
            low, high = space.ends
            axis.set_xticks([low, (low * high) ** 0.5, high], minor=False)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            axis.xaxis.set_minor_formatter("")
        axis.set_yscale(_scale([r.last.values[place] for r in complete]))
        axis.set_xlabel(key.rsplit(".", 1)[-1])
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(objective)
    return f"<h3>{_escape(objective)} by setting</h3><p>Later trials are lighter.</p>" + _image(figure)


def _importances(search: Search, complete: list[Record]) -> str:
    """How much of the objective's variance each setting explains, by fANOVA; of one key, or of few trials, it says nothing."""
    import optuna

    always = [key for key in search.plan.space if all(key in r.last.params for r in complete)]
    if len(complete) < 8 or len(always) < 2:
        return ""
    rows = []
    for place, name in enumerate(search.plan.sweep.objectives):
        with suppress(Exception):  # a constant objective has no variance to explain
            found = optuna.importance.get_param_importances(
                search.study,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                params=always,
                target=lambda trial, place=place: trial.values[place],
            )
            rows += [[name, key, f"{share:.2f}"] for key, share in found.items()]
    if not rows:
        return ""
    return "<h3>Importances</h3><p>Share of the variance over the trials (fANOVA).</p>" + _table(
        ["objective", "setting", "share"], rows, text=2
    )


def _intermediate(plan: SearchPlan, found: list[Record]) -> str:
    """Curves after every experience, and how well each ranks trials as the end does: what pruning relies on."""
    complete = [r for r in found if r.state == "complete" and r.last.intermediate_values]
    if not complete:
        return ""
    figure, axes = _figure()
    for r in found:
        if r.last.intermediate_values and r.state in ("complete", "pruned"):
            steps, values = zip(*sorted(r.last.intermediate_values.items()), strict=True)
            axes.plot(steps, values, color=BLUE if r.state == "complete" else GREY, alpha=0.5, marker=".", lw=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="experiences measured in the trial", ylabel=f"{next(iter(plan.sweep.objectives))} so far")
    rows = []
    for step, rank, n in rank_correlations(complete):
        rows.append([step, "–" if rank is None else f"{rank:+.2f}", n])
    table = _table(["after experience", "rank correlation with the end (Spearman)", "trials"], rows)
    note = (
        f"<p>Pruner: {chosen_pruner(plan).name}. Near 1, early values may decide; near 0 or below, pruning would throw away "
        "what ends well. Over complete trials only, so that pruned ones are missing.</p>"
    )
    return "<h3>Intermediate values</h3>" + _image(figure) + note + table


def rank_correlations(complete: Sequence[Record]) -> list[tuple[int, float | None, int]]:
    """(step, Spearman's correlation of the value then and at the end, trials); None where one of both is constant."""
    from scipy.stats import spearmanr

    found = []
    for step in sorted({step for r in complete for step in r.last.intermediate_values}):
        pairs = [(r.last.intermediate_values[step], r.last.values[0]) for r in complete if step in r.last.intermediate_values]
        then, end = zip(*pairs, strict=True)
        constant = len(pairs) < 3 or len(set(then)) < 2 or len(set(end)) < 2
        found.append((step, None if constant else float(spearmanr(then, end).statistic), len(pairs)))
    return found


def _all_trials(plan: SearchPlan, found: list[Record], top: set[int]) -> str:
    keys = list(plan.space)
    head = ["trial", "state", *plan.sweep.objectives, *(key.rsplit(".", 1)[-1] for key in keys), "attempts", "seconds"]
    rows = []
    for r in found:
        values = [f"{v:.4g}" for v in r.last.values] if r.state == "complete" else ["–"] * len(plan.sweep.objectives)
        settings = [shown({key: r.params[key]}).partition("=")[2] if key in r.params else "–" for key in keys]
        state = r.state + ("" if r.feasible or r.state != "complete" else " (outside)") + (" ★" if r.number in top else "")
        rows.append([r.number, state, *values, *settings, len(r.attempts), f"{r.seconds:.0f}" if r.seconds else "–"])
    return "<h3>All trials</h3>" + _table(head, rows)


def _failures(plan: SearchPlan, found: list[Record]) -> str:
    failed = [r for r in found if r.state == "failed"]
    if not failed:
        return ""
    rows = [[r.number, shown(r.params), r.error.splitlines()[0], f"trials/{r.number}/error.txt"] for r in failed]
    return "<h3>Failures</h3>" + _table(["trial", "settings", "error", "log"], rows, text=4)


def _how_to_look(sweep: SweepConfig) -> str:
    address = _escape(shown_address(sweep.storage, sweep.folder).replace(str(Path.cwd()) + "/", ""))
    return (
        "<h2>Looking at it</h2><p>The same trials, live:</p>"
        f"<pre>optuna-dashboard {address}</pre>"
        "<p>Every trial's runs are in MLflow, with the tags <code>sweep</code> and <code>trial</code>.</p>"
    )


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]], text: int = 0) -> str:
    """`text`: how many first columns are text."""

    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(f"<{tag}{' class=text' if i < text else ''}>{_escape(cell)}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 3.4), layout="constrained")


def _image(figure: Any) -> str:
    import matplotlib.pyplot as plt

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></p>'


# --- MLflow --------------------------------------------------------------------------------------------------


def _send(sweep: SweepConfig, searches: Sequence[Search], found: dict[str, list[Record]], page: str) -> None:
    """One more run, beside those of the trials, that holds the page. MLflow's being away changes nothing here."""
    from cl_softcot.results.events import EventLog
    from cl_softcot.track import mlflow

    with suppress(UserError):
        config = searches[0].plan.trial_config({})
        if not config.tracking.mlflow:
            return
        folder = sweep.folder / "mlflow_run"
        atomic_write_text(folder / "report.html", page)
        log = EventLog(folder)
        log.params({"sweep": sweep.model_dump(mode="json", exclude={"storage", "launcher"}, exclude_none=True)})
        log.tags(
            {
                "sweep": sweep.name,
                "sweep_role": "report",
                "experiment": sweep.name,
                "cl_softcot.mlflow_experiment": config.tracking.experiment,
                "mlflow.runName": sweep.title,
                "mlflow.source.name": "cl_softcot",
            }
        )
        for search in searches:
            top = best(search, found[search.plan.study_name])
            if top and len(sweep.objectives) == 1:
                name = search.plan.method or "best"
                log.metrics(Counts.of(found[search.plan.study_name]).complete, {f"best/{name}": top[0].last.values[0]})
        log.artifact("report.html")
        log.status("FINISHED")
        mlflow.sync(folder)
