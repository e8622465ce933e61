"""``python -m benchmarks [CASE ...]``: measures the cases, prints a table, and writes JSON where it is told to."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures the product against plain references that give the same numbers."
    )
    p.add_argument("cases", nargs="*", metavar="CASE", help="names, also with * (default: all that this device can do)")
    p.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    p.add_argument("--quick", action="store_true", help="tiny sizes, one round: does everything work?")
    p.add_argument("--rounds", type=int, metavar="N", help="timed rounds (default 7; 1 with --quick)")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory (a new process each)")
    p.add_argument("--json", metavar="FILE", help="where results are written")
    p.add_argument("--peak", metavar="VARIANT", help=argparse.SUPPRESS)  # the new process's side of peak memory
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # Before torch is imported: what a run sets too.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ["CL_SOFTCOT_CACHE"] = "off"  # nothing from earlier runs
    from benchmarks.cases import CASES, cases_for

    # Tiny ones run anywhere.
    names = _chosen(args.cases, list(CASES) if args.quick else cases_for(args.device)) if args.cases else cases_for(args.device)
    if args.list:
        print("\n".join(CASES))
        return 0
    import torch

    torch.set_num_threads(1)  # as a run has, also on a machine with more cores
    if args.peak:
        return _peak(CASES[names[0]](args.device, args.quick), args)
    measure(names, args)
    return 0


def _chosen(patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    found = [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    lost = [pattern for pattern in patterns if not fnmatch.filter(known, pattern)]
    if lost:
        print(f"error: no case is called {lost[0]!r} on this device; known: {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return found


def _peak(case: Any, args: argparse.Namespace) -> int:
    from benchmarks.measure import peak_of

    variant = next(v for v in case.variants if v.name == args.peak)
    print(json.dumps(peak_of(variant, args.device)))
    return 0


def measure(names: Sequence[str], args: argparse.Namespace) -> None:
    """Measures case after case; each is printed and written when it is done."""
    from benchmarks.cases import CASES
    from benchmarks.machine import describe, measure_rates
    from benchmarks.measure import memory_of, run_case
    from benchmarks.table import lines_of

    rounds = args.rounds or (1 if args.quick else 7)
    cases = {name: CASES[name](args.device, args.quick) for name in names}
    dtypes = {case.dtype for case in cases.values()}
    rates = {dtype: measure_rates(args.device, dtype, quick=args.quick) for dtype in dtypes}
    results: dict[str, Any] = {
        "machine": describe(args.device),
        "device": args.device,
        "quick": args.quick,
        "rates": {str(dtype).removeprefix("torch."): dataclasses.asdict(found) for dtype, found in rates.items()},
        "cases": {},
    }
    for name, found in results["rates"].items():
        print(f"{name}: {found['flops'] / 1e9:.0f} GFLOP/s, {found['bytes'] / 1e9:.1f} GB/s at best")
    print(_machine(results["machine"]), flush=True)
    passed_on = [*(["--quick"] if args.quick else []), "--device", args.device]
    for name, case in cases.items():
        memory: Mapping[str, Any] | None = None if args.no_memory or args.quick else memory_of(case, passed_on)
        found = run_case(case, rates[case.dtype], args.device, rounds, memory)
        results["cases"][name] = found | {"bars": []} if args.quick else found  # bars are for the real sizes
        print("\n".join(lines_of(results["cases"][name])), flush=True)
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['revision']}"
    )


if __name__ == "__main__":
    sys.exit(main())
