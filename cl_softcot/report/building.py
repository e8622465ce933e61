"""From folders to a written report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cl_softcot import __version__
from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_text, read_json
from cl_softcot.metrics.own import find_metrics
from cl_softcot.printable import visible
from cl_softcot.registry import modules_of
from cl_softcot.report import sections
from cl_softcot.report.capability import section as capability
from cl_softcot.report.content import Section, Table, Text
from cl_softcot.report.sections.main_table import side_by_side
from cl_softcot.report.studies import Study, choose_control, differences, load_studies
from cl_softcot.report.writing import Part, write
from cl_softcot.results import kept
from cl_softcot.results.folder import ExperimentFolder
from cl_softcot.results.own_metrics import with_metrics


def build(
    folders: Sequence[str],
    *,
    output: str | None = None,
    methods: Sequence[str] = (),
    control: str | None = None,
    chosen_by: Sequence[str] = (),
    bootstrap: int = 2000,
    metrics: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> tuple[Path, list[Study]]:
    """Writes the report of one or several studies; returns its page and the studies.

    Args:
        metrics: ``package.module:function`` of metrics that are computed of all runs, beside those that their records hold. What
            a folder names is not imported.

    Raises:
        UserError: for folders without runs, unknown methods, and studies in which nothing is comparable.
    """
    studies = load_studies(folders, methods)
    for study in studies:
        _compute(study, metrics, say)
        study.control, study.bootstrap = (
            choose_control(study, control if control in study.methods or len(studies) == 1 else None),
            bootstrap,
        )
        for line in study.told:
            say(f"{study.name}: {line}")
    if control and not any(study.control == control for study in studies):
        choose_control(studies[0], control)  # raises, with the names that there are
    for sweep in chosen_by:
        note_rates(studies, Path(sweep))
    several = len(studies) > 1
    parts = [Part(study.name if several else "", sections_of(study)) for study in studies]
    if several:
        across = [_beside(studies, say), capability(studies)]
        parts.insert(0, Part("", [section for section in across if section]))
    place = Path(output) if output else default_place(folders[0])
    title = "What is forgotten: " + ", ".join(study.title for study in studies)
    page = write(parts, title, about(studies, place, chosen_by), place)
    for study in studies:
        if kept.read(study.folder):
            _what_the_run_showed(study, place, f"{study.name}-" if several else "")
    return page, studies


def _compute(study: Study, metrics: Sequence[str], say: Callable[[str], None]) -> None:
    """Metrics that were asked for, of runs that finished without them. Those that only the folder names are told, and not
    imported: a folder of results is data, which may come from anywhere."""
    known = [{meaning.function for meaning in (run.metrics or {}).values()} for run in study.runs]

    def lacking(named: Iterable[str]) -> list[str]:
        return [path for path in named if not all(path in paths for paths in known)]  # else its code may be gone

    found = (study.config.get("evaluate") or {}).get("metrics")
    named = [path for path in found if isinstance(path, str)] if isinstance(found, list) else []
    unasked = [path for path in lacking(named) if path not in metrics]
    if unasked:
        options = shlex.join(word for path in unasked for word in ("--metric", path))
        say(visible(f"{study.name}: some runs lack metrics that the folder names; code is imported only when asked: {options}"))
    wanted = find_metrics(lacking(metrics))
    study.runs = [with_metrics(run, wanted) for run in study.runs]


def as_it_was_made(folder: str) -> tuple[list[str], dict[str, Any]]:
    """The folders and options (by their names in the command) of the report that was kept with a folder; of another folder
    itself, and none.
    """
    path = ExperimentFolder(Path(folder)).kept_report
    if not path.exists() or kept.read(folder) is None:
        return [folder], {}
    made = read_json(path)
    studies = made["studies"]
    options = {
        "control": studies[0]["control"] if len({study["control"] for study in studies}) == 1 else None,
        "bootstrap": studies[0]["bootstrap"],
        "chosen_by": [os.path.normpath(Path(folder) / sweep) for sweep in made.get("chosen_by", [])],
    }
    if any(told.startswith("left out as asked") for study in studies for told in study["told"]):
        runs = {run.rsplit("/", 1)[-1] for study in studies for run in (*study["runs"], *study["references"])}
        options["methods"] = ",".join(sorted({run.rsplit(".", 2)[0] for run in runs}))
    return [folder if study["folder"] == "." else os.path.normpath(Path(folder) / study["folder"]) for study in studies], options


def default_place(folder: str) -> Path:
    """Beside the runs; a kept folder holds only what cannot be made again, so its report goes to ``reports/`` here."""
    packed = kept.read(folder) is not None
    return Path("reports") / Path(folder).resolve().name if packed else ExperimentFolder(Path(folder)).report.path


def _what_the_run_showed(study: Study, place: Path, prefix: str) -> None:
    """The table and the figure that an experiment's folder has and kept results have not, made again."""
    from cl_softcot.results.reading import load_results, order_like
    from cl_softcot.track.console import table_text
    from cl_softcot.track.figures import comparison, save

    methods = [method["name"] for method in study.config.get("methods", [])]
    results = order_like(load_results(study.folder), methods)
    atomic_write_text(place / f"{prefix}table.txt", table_text(results))
    save(comparison(results), place / f"{prefix}comparison.png")


def sections_of(study: Study) -> list[Section]:
    """The sections of a study, in ``sections.ORDER``; a file that is not named there comes after."""
    place = {name: i for i, name in enumerate(sections.ORDER)}
    modules = sorted(modules_of(sections.__name__).items(), key=lambda item: (place.get(item[0], len(place)), item[0]))
    made = [module.section(study) for _, module in modules]
    return [section for section in made if section is not None]


def about(studies: Sequence[Study], output: Path, chosen_by: Sequence[str] = ()) -> dict[str, Any]:
    """The head of ``report.json``: what it was made of."""
    sweeps = {"chosen_by": [os.path.relpath(sweep, output) for sweep in chosen_by]} if chosen_by else {}
    return {
        "schema": 2,
        "cl_softcot": __version__,
        **sweeps,
        "studies": [
            {
                "name": study.name,
                "folder": os.path.relpath(study.folder, output),
                "methods": study.methods,
                "control": study.control,
                "orders": study.orders,
                "seeds": study.seeds,
                "runs": [study.relative(run) for run in study.runs],
                "references": [study.relative(run) for run in study.references],
                "bootstrap": study.bootstrap,
                "told": study.told,
            }
            for study in studies
        ],
    }


def _beside(studies: Sequence[Study], say: Callable[[str], None]) -> Section:
    """The main numbers of all studies that were measured like the first, in one table; the others are named."""
    first, alike, blocks = studies[0], [studies[0]], []
    for study in studies[1:]:
        apart = differences(first, study)
        if apart:
            told = f"{study.name} is not in one table with {first.name}: it was measured differently ({'; '.join(apart)})"
            say(told)
            blocks.append(Text(f"{told}."))
        else:
            alike.append(study)
    table: Table | None = side_by_side(alike) if len(alike) > 1 else None
    return Section("Studies side by side", [*([table] if table else []), *blocks])


def note_rates(studies: Sequence[Study], sweep: Path) -> None:
    """Says of methods whose learning rate a sweep chose that it did.

    Raises:
        UserError: if the folder holds no winner of a sweep.
    """
    found = [read_json(path) for path in sorted(sweep.rglob("winner.json"))]
    found += [record for name, record in kept.sweep_files(sweep).items() if name.rsplit("/", 1)[-1] == "winner.json"]
    if not found:
        raise UserError("no sweep that is finished in this folder (it would have a winner.json)", where=str(sweep))
    for record in found:
        for winner in record["winners"]:
            for key, value in winner["params"].items():
                if key.endswith("strategy.learning_rate"):
                    named = (
                        key.split(".")[1] if key.startswith("methods.") else record["sweep"].rsplit("/", 1)[-1].rsplit(".", 1)[-1]
                    )
                    _note_rate(
                        studies, named, float(value), f"sweep {record['sweep']}, trial {winner['number']}, validation data"
                    )


def _note_rate(studies: Sequence[Study], method: str, value: float, source: str) -> None:
    for study in studies:
        for config in study.config.get("methods", []):
            if config["name"] == method:
                own = config["strategy"].get("learning_rate")
                config["_chosen_by"] = source if own == value else f"the experiment's file ({source} chose {value:g})"


def build_comparison(
    a: str,
    b: str,
    *,
    output: str | None = None,
    methods: Sequence[str] = (),
    bootstrap: int = 2000,
    say: Callable[[str], None] = print,
) -> tuple[Path, list[Study]]:
    """Writes what changed from study ``a`` to study ``b``, and whether it matters.

    Raises:
        UserError: if a folder holds several studies, or none.
        NotComparable: if the two have nothing in common that was measured alike.
    """
    from cl_softcot.report.versus import compared

    studies = [_only(folder, methods) for folder in (a, b)]
    if studies[0].folder.resolve() == studies[1].folder.resolve():
        raise UserError("both folders are the same study", where=a)
    if studies[0].name == studies[1].name:
        studies[0].name, studies[1].name = (f"{study.folder.resolve().parent.name}/{study.name}" for study in studies)
    for study in studies:
        study.control, study.bootstrap = choose_control(study, None), bootstrap
        for line in study.told:
            say(f"{study.name}: {line}")
    part = Part("", compared(*studies))
    for section in part.sections:
        for block in section.blocks:
            if isinstance(block, Text) and section is part.sections[-1]:
                say(block.text)
    place = Path(output) if output else default_place(b).parent / f"compare_{Path(a).resolve().name}"
    title = f"{studies[1].name} against {studies[0].name}"
    return write([part], title, about(studies, place), place), studies


def _only(folder: str, methods: Sequence[str]) -> Study:
    studies = load_studies([folder], methods)
    if len(studies) > 1:
        raise UserError(
            f"this folder holds {len(studies)} studies ({', '.join(s.name for s in studies)}); give one of them", where=folder
        )
    return studies[0]
