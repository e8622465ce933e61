"""What is needed to make every number again: commands, revisions, versions, fingerprints and hashes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cl_softcot.report.content import Block, Listing, Section, Table, Text
from cl_softcot.report.studies import Study, folder_of
from cl_softcot.results import kept


def section(study: Study) -> Section:
    blocks: list[Block] = [
        Text(
            "Every number stands in report.json with the runs that it was made from and what was done with them; the same "
            "command on the same folders writes the same files. The experiment, with all its settings, is config.yaml in its "
            "folder:"
        ),
        Listing("\n".join(_commands(study))),
        _versions(study),
        _runs(study),
    ]
    return Section("To reproduce", blocks)


def _commands(study: Study) -> list[str]:
    lines = []
    revisions = sorted({run.revision for run in study.runs if run.revision})
    if revisions:
        lines.append(f"git checkout {revisions[0].removesuffix('+dirty')}")
    lines.append(_run_command(study) if study.config.get("tasks") else "# the experiment's file is not in this folder")
    return [*lines, shlex.join(["python", "-m", "cl_softcot.report", str(study.folder)])]


def _run_command(study: Study) -> str:
    """It goes on with the study's own runs, also where their folder was moved; kept ones it makes again elsewhere."""
    words, place = ["python", "-m", "cl_softcot.run", str(study.folder / "config.yaml")], study.config.get("output_dir")
    moved = place and not kept.read(study.folder) and Path(place).resolve() != study.folder.resolve()
    return shlex.join([*words, f"output_dir={study.folder}"] if moved else words)


def _versions(study: Study) -> Table:
    found: dict[str, dict[str, int]] = {}
    for run in [*study.runs, *study.references]:
        own = {
            "revision": run.revision,
            **(run.versions or {}),
            "processor": run.machine.processor,
            "device": run.machine.device,
            "processes": run.machine.processes,
        }
        for key, value in own.items():
            if value is not None:
                counts = found.setdefault(key, {})
                counts[str(value)] = counts.get(str(value), 0) + 1
    rows = [
        [key, ", ".join(f"{v} ({n} runs)" if len(counts) > 1 else v for v, n in counts.items())] for key, counts in found.items()
    ]
    rows += _fingerprints(study)
    notes = ["Made by code with changes that were not committed (+dirty)."] if any("+dirty" in row[1] for row in rows) else []
    if len(found.get("revision", {})) > 1:
        notes.append("The runs were made by different revisions of the code.")
    return Table(f"{study.name}-versions", "Versions and fingerprints", ["what", "value"], rows, 2, notes)


def _fingerprints(study: Study) -> list[list[str]]:
    rows = [["experiment fingerprint", str(study.record["config_fingerprint"])]] if "config_fingerprint" in study.record else []
    base = kept.base_sha256(study.folder)
    rows += [["test data, base's answers (base.json)", f"SHA-256 {base}"]] if base else []
    about = study.record.get("task_data")
    rows += [[f"data of {task}", str(line)] for task, line in about.items()] if isinstance(about, dict) else []
    frozen = study.runs[0].frozen
    return [*rows, ["backbone", f"SHA-256 {frozen.backbone_sha256_before}"]]


def _runs(study: Study) -> Table:
    rows = []
    for run in [*study.runs, *study.references]:
        data = ", ".join(_short(fingerprint) for fingerprint in run.train_fingerprints or []) or "–"
        rows.append([study.relative(run), _short(run.config_fingerprint), data, kept.result_sha256(folder_of(run))[:16]])
    note = "Fingerprints and hashes are cut to 16 digits here; result.json holds them whole."
    head = ["run", "settings", "training data", "SHA-256 of result.json"]
    return Table(f"{study.name}-runs", "The runs behind the numbers", head, rows, 4, [note])


def _short(fingerprint: Any) -> str:
    return str(fingerprint).rsplit(":", 1)[-1][:16] if fingerprint else "–"
