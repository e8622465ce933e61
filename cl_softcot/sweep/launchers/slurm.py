"""Workers as an array of Slurm jobs, through submitit; and the same as a plain sbatch script.

Slurm warns a job with USR2 before its time is out and (where the site sets `preempt_send_user_signal`) before it is preempted.
The worker gives its trial back and the job is requeued; it then takes the next trial there is. A job that is killed without a
warning is noticed by the others. One that does not come back is replaced when the sweep's command is run again.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, waiting_lock
from cl_softcot.sweep.config import Slurm, SweepConfig
from cl_softcot.sweep.launchers import worker_command
from cl_softcot.sweep.worker import REQUEUE, Interrupted, interruptible


def check(sweep: SweepConfig) -> None:
    if sweep.storage.kind == "sqlite":
        raise UserError(
            "sqlite is a storage for one machine, and Slurm may use many",
            fix="Use storage: {kind: postgresql, url: ...}; without a database, storage: journal works for some ten workers.",
        )
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"there is no Slurm on this machine ({', '.join(missing)} not found)",
            fix="Start the sweep where jobs are submitted, or use launcher=local. --dry-run writes the script all the same.",
        )
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "the Slurm launcher needs submitit",
            fix="pip install 'cl-softcot[slurm]', or submit the script that --dry-run writes.",
        ) from None


def launch(sweep: SweepConfig, say: Callable[[str], None], detach: bool) -> bool:
    import submitit

    with waiting_lock(sweep.folder / ".jobs.lock"):  # two commands at once must not submit twice as many
        jobs = alive(sweep)
        chosen = _chosen(sweep)
        missing = chosen.workers - len(jobs)
        if jobs:
            say(f"jobs that are there already: {', '.join(jobs)}")
        if missing > 0:
            executor = submitit.SlurmExecutor(folder=sweep.folder / "logs" / "slurm", max_num_timeout=chosen.requeues)
            executor.update_parameters(**parameters(sweep))
            folder = str(sweep.folder.resolve())
            try:
                with executor.batch():
                    submitted = [executor.submit(SlurmWorker(folder)) for _ in range(missing)]
            except (subprocess.CalledProcessError, RuntimeError) as error:
                raise UserError(f"Slurm refused the jobs: {_said(error)}", fix="See `launcher` in the sweep file.") from None
            ids = [job.job_id for job in submitted]
            _remember(sweep, ids)
            say(f"submitted: {', '.join(ids)} (logs: {sweep.folder}/logs/slurm/)")
    return False


def _said(error: Any) -> str:
    text = str(getattr(error, "stderr", None) or getattr(error, "output", None) or error)
    return " ".join(text.split())


def _chosen(sweep: SweepConfig) -> Slurm:
    assert isinstance(sweep.launcher, Slurm), "only asked of sweeps that Slurm starts"
    return sweep.launcher


def _resources(chosen: Slurm) -> dict[str, Any]:
    """What a worker is given, in Slurm's words."""
    return {
        "time": chosen.time_minutes,
        "cpus_per_task": chosen.cpus,
        "partition": chosen.partition,
        "account": chosen.account,
        "qos": chosen.qos,
        "mem": f"{round(chosen.memory_gb * 1024)}M" if chosen.memory_gb else None,
        "gres": f"gpu:{chosen.gpus}" if chosen.gpus else None,
    }


def parameters(sweep: SweepConfig) -> dict[str, Any]:
    """The launcher's settings in submitit's words."""
    chosen = _chosen(sweep)
    wanted = {
        "job_name": sweep.name,
        **_resources(chosen),
        "signal_delay_s": chosen.signal_seconds,
        "array_parallelism": chosen.array_parallelism or chosen.workers,
        "setup": chosen.setup or None,
        "additional_parameters": {"requeue": True, **chosen.sbatch},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _job_file(sweep: SweepConfig) -> Path:
    return sweep.folder / "logs" / "slurm_jobs.json"


def _remember(sweep: SweepConfig, ids: list[str]) -> None:
    known = read_json(_job_file(sweep)) if _job_file(sweep).exists() else []
    atomic_write_json(_job_file(sweep), [*known, *ids])


def alive(sweep: SweepConfig) -> dict[str, str]:
    """The sweep's jobs that Slurm still knows as waiting or running: id -> state."""
    if not _job_file(sweep).exists() or shutil.which("squeue") is None:
        return {}
    ours = set(read_json(_job_file(sweep)))
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) == 2)
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
    return {job: state for job, state in states.items() if job in ours and state not in over}


class SlurmWorker:
    """What submitit calls in a job. `checkpoint` is called when the job is to be requeued."""

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self) -> int:
        from cl_softcot.sweep.commands import guarded_sweep, worker

        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: requeues the job and leaves
        try:
            with interruptible([signal.SIGUSR2]):
                status = guarded_sweep(lambda: worker(self.folder, in_job=True))
        except Interrupted as stop:
            # Here, and not inside of the signal's handler: that would have met the storage in the middle of something.
            assert callable(requeue), "submitit has set it"
            requeue(stop.signum, None)
            raise
        if status:
            raise RuntimeError(f"the worker ended with status {status}")
        return status

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmWorker(self.folder))


def script(sweep: SweepConfig) -> str:
    """The sbatch array script of the same workers, for sites without submitit."""
    chosen = _chosen(sweep)
    folder = sweep.folder.resolve()
    flags = {
        "job-name": sweep.name,
        "array": f"0-{chosen.workers - 1}" + (f"%{chosen.array_parallelism}" if chosen.array_parallelism else ""),
        **{key.replace("_", "-"): value for key, value in _resources(chosen).items()},
        "signal": f"USR2@{chosen.signal_seconds}",
        "requeue": True,
        "open-mode": "append",
        "output": f"{folder}/logs/slurm_%A_%a.log",
        **chosen.sbatch,
    }
    lines = ["#!/bin/bash"]
    for key, value in flags.items():
        if value is not None and value is not False:
            lines.append(f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}"))
    lines += ["", *chosen.setup, f"cd {shlex.quote(str(Path.cwd()))}"]
    lines += [
        f"srun {shlex.join(worker_command(sweep, sys.executable, folder))}",
        "status=$?",
        f"# {REQUEUE}: the worker was warned (out of time, preempted) and has given its trial back",
        f'if [ "$status" = {REQUEUE} ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"; fi',
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"
