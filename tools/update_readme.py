"""Writes the README's tables from the kept results and scores: ``python tools/update_readme.py`` (``--check``: only compares)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def tables() -> dict[str, str]:
    """Name of a block in the README -> its text."""
    found = {}
    for folder in sorted((ROOT / "experiments" / "results").glob("*/")):
        if (folder / "runs.jsonl.gz").exists():
            found[folder.name] = experiment_table(folder)
    scores = ROOT / "cl_softcot" / "tiny" / "scores.json"
    if scores.exists():
        found["scores"] = scores_table(json.loads(scores.read_text()))
    return found


def experiment_table(folder: Path) -> str:
    from cl_softcot.results.reading import load_results, order_like
    from cl_softcot.track.console import table_markdown

    methods = re.findall(r"^- name: (\S+)$", (folder / "config.yaml").read_text().partition("\nmethods:")[2], re.M)
    return table_markdown(order_like(load_results(folder), methods))


def scores_table(scores: dict) -> str:
    """One row a model and way of answering."""
    names = {"backbone": "backbone", "backbone-50": "backbone @50", "backbone-25": "backbone @25", "assistant": "assistant"}
    modes = {
        "cot": "CoT",
        "direct": "direct",
        "alternative": "CoT, alternative convention unsaid",
        "harder": "CoT, one notch harder",
    }
    families = list(scores["backbone"]["cot"])
    lines = ["| greedy, judged, on test questions | " + " | ".join(f.replace("_", " ") for f in families) + " |"]
    lines.append("|:---|" + "---:|" * len(families))
    for model, label in names.items():
        for mode, told in modes.items():
            if model != "backbone" and mode in ("alternative", "harder"):
                continue
            row = scores[model][mode]
            cells = [f"{row[f]['accuracy']:.3f}".lstrip("0") if f in row else "" for f in families]
            lines.append(f"| {label}, {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    for name, table in tables().items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.S)
        text = block.sub(lambda m, table=table: m[1] + table + m[2], text)
    return text


def main() -> int:
    path = ROOT / "README.md"
    old = path.read_text()
    new = updated(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print("README.md's tables are not those of the kept results: python tools/update_readme.py")
        return int(old != new)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
