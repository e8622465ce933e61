"""A sweep's folder and storage: made, found, and refused where it is another sweep's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, waiting_lock
from cl_softcot.sweep.config import SearchPlan, SweepConfig, load_sweep, shown_path
from cl_softcot.sweep.space import grid
from cl_softcot.sweep.storage import Patience, open_storage, shown_address
from cl_softcot.sweep.trials import Search

# --- looking -------------------------------------------------------------------------------------------------


def existing(name: str) -> SweepConfig:
    """A sweep that was started, by its folder or its file."""
    from cl_softcot.config import yaml
    from cl_softcot.config.loading import validated

    path = Path(name)
    if path.is_file():
        path = load_sweep(path).folder
    if not (path / "sweep.yaml").is_file():
        raise UserError(
            "no sweep was started here", where=str(path), fix="Give a sweep's folder, e.g. sweeps/projector, or its YAML file."
        )
    tree, _ = yaml.read_file(path / "sweep.yaml")
    tree.data["output_dir"] = shown_path(path)
    sweep, problems = validated(tree, SweepConfig)
    if problems:
        raise UserError(yaml.told(problems))
    return sweep


# --- making and finding a sweep ------------------------------------------------------------------------------


def create(sweep: SweepConfig) -> list[Search]:
    """Makes the sweep's folder, storage and studies, or finds them as they are. Safe to call at the same time.

    Raises:
        UserError: if the folder or the storage holds another sweep of that name.
    """
    with waiting_lock(sweep.folder / ".lock"):
        identity = _identity(sweep)
        storage = open_storage(sweep.storage, sweep.folder, create=True)
        patience = Patience(sweep.storage, sweep.folder)
        for plan in sweep.plans():
            patience(partial(_create_study, plan, storage, identity))
        write_sweep(sweep)
        (sweep.folder / "logs").mkdir(exist_ok=True)  # Slurm makes none
    return [Search(plan, storage, patience) for plan in sweep.plans()]


def find(sweep: SweepConfig, say: Callable[[str], None] = lambda _: None) -> list[Search]:
    """The searches of a sweep that was created.

    Raises:
        UserError: if there is none, or its storage cannot be reached.
    """
    patience = Patience(sweep.storage, sweep.folder, say)
    storage = patience(lambda: open_storage(sweep.storage, sweep.folder))
    try:
        return [Search(plan, storage, patience) for plan in sweep.plans()]
    except KeyError:
        raise UserError(
            "the storage does not know this sweep",
            where=shown_address(sweep.storage, sweep.folder),
            fix="Start it with its YAML file.",
        ) from None


def write_sweep(sweep: SweepConfig) -> None:
    from cl_softcot.config import yaml
    from cl_softcot.files import atomic_write_text

    atomic_write_text(sweep.folder / "sweep.yaml", yaml.dump(sweep.model_dump(mode="json", exclude_none=True)))


def _identity(sweep: SweepConfig) -> dict[str, Any]:
    """What tells this sweep from others: an id of its folder, and the fingerprint of each search.

    Raises:
        UserError: if the folder holds another sweep.
    """
    path = sweep.folder / "sweep.json"
    fingerprints = {plan.study_name: plan.fingerprint() for plan in sweep.plans()}
    if not path.exists():
        known = {"id": os.urandom(8).hex(), "fingerprints": fingerprints, "started": time.time()}
        atomic_write_json(path, known)
        return known
    known = read_json(path)
    if not isinstance(known, dict) or known.get("fingerprints") != fingerprints:
        raise UserError(
            "this folder holds a sweep with other settings",
            where=str(sweep.folder),
            fix="Give this one another name (name=OTHER), or remove the folder and the study of the earlier one. "
            "The number of trials, the sampler and the launcher may change; what a trial is may not.",
        )
    return known


def _create_study(plan: SearchPlan, storage: Any, identity: Mapping[str, Any]) -> None:
    import optuna

    directions = list(plan.sweep.objectives.values())
    try:
        study = optuna.create_study(study_name=plan.study_name, storage=storage, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=plan.study_name, storage=storage)
        if study.user_attrs.get("sweep") not in (None, identity["id"]) or (
            study.user_attrs.get("sweep") is None and study.get_trials(deepcopy=False)
        ):
            raise UserError(
                f"the storage holds another sweep called {plan.study_name!r}",
                where=shown_address(plan.sweep.storage, plan.sweep.folder),
                fix="Give this one another name (name=OTHER), or start it in the folder of the other.",
            ) from None
    if study.user_attrs.get("made"):
        return
    study.set_user_attr("sweep", identity["id"])
    study.set_metric_names(list(plan.sweep.objectives))
    if plan.sweep.sampler.name == "grid":
        for params in grid(plan.space):
            stored = {key: plan.space[key].stored(value) for key, value in params.items()}
            study.enqueue_trial(stored, skip_if_exists=True)  # an earlier start may have died half-way
    study.set_user_attr("made", True)
