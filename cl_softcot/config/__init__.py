"""What an experiment is: its YAML as typed models, strict, explained, overridable, with a fingerprint.

`load_experiment("experiments/sequence_a.yaml", ["train.steps=60"])` reads a file with its `base`, applies overrides
and validates everything, the settings of each task, reasoning and strategy included. Whatever is wrong is told at
once, each with file, line and column. `python -m cl_softcot.config` prints the JSON schema for editors.

    experiment.py   one file: Experiment, and the defaults that follow from others
    settings.py     its parts: models, training, evaluation, methods, tracking
    plugins.py      maps whose rest are the settings of the class that they name
    checks.py       what must fit together
    loading.py      base files, overrides, and the place of every error
    plan.py         which runs it has
    fingerprint.py  what can change a number, hashed
    yaml.py problems.py schema.py
"""

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import fingerprint, run_fingerprint, to_data, to_yaml
from cl_softcot.config.loading import Loaded, load_experiment
from cl_softcot.config.plan import RunSpec, plan

__all__ = [
    "Experiment",
    "Loaded",
    "RunSpec",
    "fingerprint",
    "load_experiment",
    "plan",
    "run_fingerprint",
    "to_data",
    "to_yaml",
]
