"""Results as text: for the terminal, and for README.md (``python -m benchmarks.table RESULT.json ...`` puts them there)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """A case as lines of text: what was measured, one line a variant, the floor, the bars."""
    agreement = result["agreement"]
    same = f"losses within {agreement['largest_difference']:.0e}" if "loss" in agreement else "the same answers"
    lines = ["", f"{result['case']}: {result['job']} ({same if agreement['same'] else 'NOT THE SAME'})"]
    titles = {"CPU": 10, "wall": 10, "x ours": 8, "GFLOP": 9, "x must": 8, "x floor": 8, "share": 6, "memory": 9}
    lines.append(f"  {'':<22} " + " ".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, numbers in result["variants"].items():
        ratio = result["ratios"].get(name, {})
        flops = numbers["flops"] if name != "ours" else result["floor"]["flops"]
        cells = [
            _ms(numbers["cpu_s"]),
            _ms(numbers["wall_s"]),
            _number(ratio.get("time"), 8),
            _number(flops and flops / 1e9, 9, 2),
            _number(ratio.get("flops"), 8),
            _number(ratio.get("floor"), 8),
            _number(ratio.get("share"), 6, 2),
            _number(numbers.get("peak_mb"), 6, 0) + " MB",
        ]
        lines.append(f"  {name:<22} " + " ".join(cells))
    floor = result["floor"]
    parts = ", ".join(f"{what} {seconds * 1e3:.2f}" for what, seconds in floor["parts"].items())
    if floor["distance"]:
        lines.append(f"  floor {floor['seconds'] * 1e3:.2f} ms ({parts}): ours takes {floor['distance']:.1f} times that")
    lines += [f"  {'met' if b['met'] else 'NOT MET'}: {b['bar']}: {b['measured']:.2f}" for b in result["bars"]]
    return lines


def of_cases(results: Mapping[str, Any]) -> str:
    """Results of ``python -m benchmarks``: a table, and which bars are met."""
    kind = "CPU" if results["device"] == "cpu" else "wall"
    columns = [
        "case",
        f"ours, ms ({kind})",
        "published, x ours",
        "cached, x ours",
        "operations, cached / must",
        "floors, cached / must",
        "share",
        "MB: ours / published / cached",
        "x floor",
    ]
    head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    rows = []
    for name, result in results["cases"].items():
        variants, ratios = result["variants"], result["ratios"]
        seconds = variants["ours"]["cpu_s" if results["device"] == "cpu" else "wall_s"]
        memory = " / ".join(_number(variants.get(v, {}).get("peak_mb"), 0, 0) for v in ("ours", "published", "cached"))
        cached = ratios.get("cached", {})
        cells = [
            f"`{name}`",
            f"{seconds * 1e3:.1f}",
            _number(ratios.get("published", {}).get("time"), 0),
            _number(cached.get("time"), 0, 2),
            _number(cached.get("flops"), 0, 2),
            _number(cached.get("floor"), 0, 2),
            _number(cached.get("share"), 0, 2),
            memory,
            _number(result["floor"]["distance"], 0),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    met = [
        f"* `{name}`: {bar['bar']}: {bar['measured']:.2f}{'' if bar['met'] else ' - **not met**'}"
        for name, result in results["cases"].items()
        for bar in result["bars"]
    ]
    rates = "; ".join(f"{d}: {r['flops'] / 1e9:.0f} GFLOP/s, {r['bytes'] / 1e9:.1f} GB/s" for d, r in results["rates"].items())
    return "\n".join([f"{_origin(results['machine'])} At best {rates}.", "", *head, *rows, "", *met])


def of_whole_job(results: Mapping[str, Any]) -> str:
    """Results of ``python -m benchmarks.whole_job``: the command, and every method's parts."""
    lines = [_origin(results["machine"]), ""]
    if "command" in results:
        c = results["command"]
        said = f"`{results['experiment']}`: {c['wall_s']:.0f} s from start to end (bar: 240), {c['cpu_s']:.0f} core-seconds"
        lines += [f"{said}, {c['peak_mb']:.0f} MB at most in all processes together.", ""]
    groups = ("importing", "preparing", "learning", "answering", "drift", "concluding")
    lines += ["| core-seconds | all | " + " | ".join(groups) + " | drift | MB |", "|---" * (len(groups) + 4) + "|"]
    for name, found in results.get("methods", {}).items():
        sums = {group: sum(parts.values()) for group, parts in found["groups"].items()}
        cells = [f"{sums.get(group, 0.0):.1f}" for group in groups]
        share = f"{sums.get('drift', 0.0) / found['cpu_s']:.0%}"
        lines.append(f"| {name} | {found['cpu_s']:.1f} | " + " | ".join(cells) + f" | {share} | {found['peak_mb']:.0f} |")
    return "\n".join([*lines, "", *_parts_of(results.get("methods", {}))])


def _parts_of(methods: Mapping[str, Any]) -> list[str]:
    """Where learning and answering go, in shares of a method's time; parts below a hundredth are left out."""
    lines = []
    for name, found in methods.items():
        parts = [(s, f"{group}: {part}") for group, parts in found["groups"].items() for part, s in parts.items()]
        large = [f"{what} {s / found['cpu_s']:.0%}" for s, what in sorted(parts, reverse=True) if s >= 0.01 * found["cpu_s"]]
        lines.append(f"* {name}: {'; '.join(large)}")
    return lines


def of_curves(results: Mapping[str, Any]) -> str:
    """Results of ``python -m benchmarks.curves``."""
    lines = [_origin(results["machine"]), "", "| ms | | | | | grows as, at the end |", "|---|---|---|---|---|---|"]
    for name, curve in results["curves"].items():
        points = [f"{x}: {s * 1e3:.0f}" for x, s in zip(curve["x"], curve["cpu_s"], strict=True)]
        lines.append(f"| {name} | " + " | ".join(points + [""] * (4 - len(points))) + f" | x^{curve['exponent']:.2f} |")
    lines += ["", "| tasks in the stream | learning, s | answering, s | questions answered |", "|---|---|---|---|"]
    for s in results["stream"]:
        lines.append(f"| {s['tasks']} | {s['learning']:.2f} | {s['answering']:.2f} | {s['answers']:.0f} |")
    return "\n".join(lines)


def of_side_by_side(results: Mapping[str, Any]) -> str:
    """Results of ``python -m benchmarks.side_by_side``."""
    lines = ["| job | settings | one by one, s | side by side, s | time | operations | time / operations (bar: 1.15) |"]
    lines.append("|---" * 7 + "|")
    for row in results["side_by_side"]:
        seconds = f"{row['one_by_one_s']:.2f} | {row['side_by_side_s']:.2f}"
        ratios = f"{row['time_ratio']:.2f} | {row['operations_ratio']:.2f} | {row['share']:.2f}"
        lines.append(f"| {row['job']} | {row['settings']} | {seconds} | {ratios}{'' if row['met'] else ', **not met**'} |")
    return "\n".join(lines)


BLOCKS = {"cases": of_cases, "methods": of_whole_job, "curves": of_curves, "side_by_side": of_side_by_side}


def main(argv: Sequence[str] | None = None) -> int:
    """Puts kept results into README.md: ``python -m benchmarks.table RESULT.json ...``."""
    readme = Path(__file__).with_name("README.md")
    text = readme.read_text(encoding="utf-8")
    for path in sys.argv[1:] if argv is None else argv:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        kind = next(kind for kind in BLOCKS if kind in results)
        text = with_block(text, kind, BLOCKS[kind](results))
    readme.write_text(text, encoding="utf-8")
    return 0


def with_block(text: str, kind: str, block: str) -> str:
    """The text with what stands between ``<!-- kind -->`` and ``<!-- end kind -->`` replaced."""
    before, rest = text.split(f"<!-- {kind} -->\n", 1)
    _, after = rest.split(f"<!-- end {kind} -->", 1)
    return f"{before}<!-- {kind} -->\n{block}\n<!-- end {kind} -->{after}"


def _origin(machine: Mapping[str, Any]) -> str:
    device = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores a process"
    return f"Revision {machine['revision']}, {device}, torch {machine['torch']}, load average {machine['load_average']} before."


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>7.1f} ms"


def _number(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
