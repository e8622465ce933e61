"""The whole job: ``python -m benchmarks.whole_job [EXPERIMENT] [key=value ...]``.

Runs an experiment (default: experiments/sequence_a.yaml) as a user does, in a new folder and with an empty cache: wall time,
processor time and memory, from the start of the command to its end. Then every method once more, each in a process of its own,
with its processor time by part. ``--profile METHOD`` does only that, for one method.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BARS = {"wall_s": 240.0, "method_cpu_s": 45.0, "drift_share": 0.10}
BASE = "the base"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.whole_job", description="Measures a whole experiment.")
    p.add_argument("experiment", nargs="?", default=str(ROOT / "experiments" / "sequence_a.yaml"))
    p.add_argument("overrides", nargs="*", metavar="key=value")
    p.add_argument("--profile", metavar="METHOD", help="where the time of one method goes, and nothing else")
    p.add_argument("--no-methods", action="store_true", help="only the command as a whole")
    p.add_argument("--json", metavar="FILE", help="where results are written")
    p.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)  # the side of the new process
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    args.experiment = str(Path(args.experiment).resolve())  # the command runs in a folder of its own
    if args.one:
        print(json.dumps(one_method(args.experiment, args.overrides, *args.one)))
        return 0
    from benchmarks.machine import describe
    from cl_softcot.config.loading import load_experiment

    methods = [m.name for m in load_experiment(args.experiment, args.overrides).config.methods]
    if args.profile and args.profile not in methods:
        print(f"error: no method is called {args.profile!r}; known: {', '.join(methods)}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"machine": describe("cpu"), "experiment": Path(args.experiment).name}
    if not args.profile:
        results["command"] = the_command(args.experiment, args.overrides)
        print(_said(results["command"]), flush=True)
    if not args.no_methods:
        results["methods"] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in [BASE, *([args.profile] if args.profile else methods)]:
                results["methods"][name] = _in_a_new_process(args.experiment, args.overrides, name, folder)
                print("\n".join(lines_of(name, results["methods"][name], whole=bool(args.profile))), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


# ------------------------------------------------------------------------------------------------ the whole command


def the_command(experiment: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Wall and processor seconds of the command and its workers, and the largest sum of their memory."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"CL_SOFTCOT_CACHE": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "cl_softcot.run", experiment, *overrides, f"output_dir={folder}/run"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        peak = _Peak(process.pid)
        peak.start()
        output, _ = process.communicate()
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        peak.stop()
        if process.returncode:
            raise SystemExit(f"the command failed:\n{output.decode()[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak.highest / 1e6, "met": wall <= BARS["wall_s"]}


class _Peak(threading.Thread):
    """The largest sum of what a process and its descendants hold (proportional set size: shared pages are split)."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.highest = pid, 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.highest = max(self.highest, sum(map(_held, _family(self.pid))))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _family(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        try:
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:  # ended meanwhile
            continue
    return found


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


# --------------------------------------------------------------------------------------------------- method by method


def _in_a_new_process(experiment: str, overrides: Sequence[str], method: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.whole_job", experiment, *overrides, "--one", method, folder]
    environment = os.environ | {
        "CL_SOFTCOT_CACHE": f"{folder}/cache",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one_method(experiment: str, overrides: Sequence[str], method: str, folder: str) -> dict[str, Any]:
    """Processor seconds of one run, by part, imports included; to be called first in a process of its own."""
    from benchmarks.stopwatch import watching
    from cl_softcot.config.loading import load_experiment
    from cl_softcot.config.plan import plan
    from cl_softcot.metrics.cost import peak_memory_mb
    from cl_softcot.results.folder import ExperimentFolder
    from cl_softcot.run import one_run
    from cl_softcot.run.base import measure_base
    from cl_softcot.track import figures  # noqa: F401  what a run imports in the end

    config = load_experiment(experiment, [*overrides, f"output_dir={folder}/run"]).config
    importing, started = time.process_time(), time.perf_counter()
    place = ExperimentFolder(Path(folder) / "run")
    shared = place.shared.path
    with watching() as watch:
        if method == BASE:
            with watch.part("answering", "other"):
                measure_base(config, shared, lambda _: None)
        else:
            spec = next(spec for spec in plan(config) if spec.method == method)
            one_run.run_one(config, spec, place.run(spec.key).path, shared, {}, lambda _: None)
    groups: dict[str, dict[str, float]] = {"importing": {"all": importing}}
    for (group, part), seconds in watch.stop().items():
        groups.setdefault(group, {})[part] = round(seconds, 3)
    return {
        "cpu_s": time.process_time(),
        "wall_s": time.perf_counter() - started + importing,
        "peak_mb": peak_memory_mb(),
        "groups": groups,
    }


# ------------------------------------------------------------------------------------------------------------ text


def _said(command: Mapping[str, Any]) -> str:
    verdict = "met" if command["met"] else "NOT MET"
    return (
        f"the command: {command['wall_s']:.0f} s of wall time ({verdict}: at most {BARS['wall_s']:.0f}), "
        f"{command['cpu_s']:.0f} core-seconds, {command['peak_mb']:.0f} MB at most in all processes"
    )


def lines_of(name: str, found: Mapping[str, Any], *, whole: bool) -> list[str]:
    """One method: sums of the groups, and with ``whole`` every part."""
    sums = {group: sum(parts.values()) for group, parts in found["groups"].items()}
    share = sums.get("drift", 0.0) / found["cpu_s"]
    said = ", ".join(f"{group} {seconds:.1f}" for group, seconds in sums.items() if seconds >= 0.05)
    lines = [f"{name}: {found['cpu_s']:.1f} core-seconds, {found['peak_mb']:.0f} MB ({said}); drift {share:.0%}"]
    if whole:
        for group, parts in found["groups"].items():
            for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
                lines.append(f"    {group:<12} {part:<32} {seconds:7.2f} s  {seconds / found['cpu_s']:5.1%}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
