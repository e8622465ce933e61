"""Running an experiment: `python -m cl_softcot.run FILE.yaml`, or `run_experiment(config)` from a program.

experiment.py   all its runs: which are left, in worker processes or here, and what is said at the end
one_run.py      one of them: learn, measure, diagnose, record
progress.py diagnosing.py recording.py     its checkpoints; what is measured beside its rows; its record
base.py         what is the same for all: the base's answers
workers.py together.py   processes that take one run after the other; processes that do every run together
preflight.py    refuses what cannot work, before anything is computed
api.py          the same from a program
"""

from cl_softcot.run.api import default_jobs, run_experiment

__all__ = ["default_jobs", "run_experiment"]
