"""Every experiment of the repository: valid, and its dry run works without a hub, data or GPU and says what its header says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cl_softcot.config.loading import load_experiment
from cl_softcot.results.kept import read

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments"
# Resolved configs of kept results are as old as their results; sweeps and the study of the law are other commands'.
OTHERS = {"results", "sweeps", "kl_law.yaml"}
EXPERIMENTS = [p for p in sorted(FOLDER.rglob("*.yaml")) if not OTHERS & set(p.relative_to(FOLDER).parts)]
NAMES = [str(p.relative_to(FOLDER)) for p in EXPERIMENTS]
COST = re.compile(r"^# Expected \((--dry-run --gpu-memory 80(?: --gpus (\d+))?), H100\): (.+)\.$", re.M)

_SCRIPT = """
import contextlib, io, json, re, sys
from cl_softcot.run.__main__ import main
from cl_softcot.config import load_experiment
from cl_softcot.estimate.words import summary
for path, arguments, gpus in json.load(sys.stdin):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        status = main([path, "--dry-run", *arguments])
    cost = summary(load_experiment(path).config, 80, gpus) if gpus else None
    print(json.dumps([path, status, text.getvalue(), cost]), flush=True)
"""


def header(path: Path) -> tuple[str, int, str] | None:
    """Arguments, GPUs and the cost that the comments of an experiment state."""
    found = COST.search(path.read_text(encoding="utf-8"))
    return found and (found[1], int(found[2] or 1), found[3])


def made_on_the_spot(path: Path) -> bool:
    """Whether the model is a folder that the experiment's comments say how to make."""
    backbone = load_experiment(path).config.backbone.path
    return f"cl_softcot.models.scratch {backbone}" in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """{path: (exit status, what it printed, its cost in a line)}, from one process that knows no hub."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    jobs = []
    for path in EXPERIMENTS:
        stated = header(path)
        arguments = stated[0].split()[1:] if stated else []
        jobs.append([str(path), arguments, stated[1] if stated else 0])
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(nowhere), "HF_HUB_CACHE": str(nowhere), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=nowhere,
        env={**os.environ, **offline},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(nowhere.iterdir()) == []  # a dry run writes nothing
    return {path: (status, text, cost) for path, status, text, cost in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_it_is_valid(path):
    config = load_experiment(path).config
    assert config.name == path.stem and config.methods


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_its_dry_run_works_offline(path, dry_runs):
    status, text, _ = dry_runs[str(path)]
    config = load_experiment(path).config
    if made_on_the_spot(path):  # nothing is known of the model before it is there, and that is said
        assert status == 4 and "cannot run: backbone: " in text
        assert f"the shape of '{config.backbone.path}' is not known" in text and "models.scratch" in text
        assert all(re.search(rf"^  {re.escape(method.name)} ", text, re.M) for method in config.methods)
        return
    assert status == 0
    for method in config.methods:
        assert len(re.findall(rf"^  {re.escape(method.name)} ", text, re.M)) == 2, text  # its budget, and its memory
    assert re.search(r"about [\d.]+ (GPU hours|minutes|seconds) in all", text)
    assert "DOES NOT FIT" not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_its_header_says_what_it_costs(path, dry_runs):
    """Of experiments with models that are not in the repository."""
    config, stated = load_experiment(path).config, header(path)
    if config.backbone.path.startswith("builtin:") or made_on_the_spot(path):
        assert stated is None
        return
    assert stated, "no line '# Expected (--dry-run --gpu-memory 80, H100): ...'"
    assert stated[2] == dry_runs[str(path)][2]


def test_prosqa_is_the_papers_setting():
    config = load_experiment(FOLDER / "coconut_gpt2_prosqa.yaml").config
    train = config.train
    assert train.steps == round(50 * train.examples / train.global_batch_size) and train.global_batch_size == 128
    assert (train.warmup_fraction, train.decay_fraction, train.gradient_clip, train.betas) == (0, 0, None, [0.9, 0.999])
    for method in config.methods:
        assert (method.strategy.settings.learning_rate, method.strategy.settings.weight_decay) == (1e-4, 0.01)
    settings = config.method("coconut").reasoning.settings
    phases = config.method("coconut").reasoning.cls(settings).phases(train.steps)
    epoch = train.examples / train.global_batch_size
    assert [phase.stage for phase in phases] == [*range(7), 7]  # six steps replaced, then none written
    assert [round(phase.steps / epoch, 1) for phase in phases] == [5.0] * 7 + [15.0]


@pytest.mark.parametrize("name", ["factorial_llama31_8b", "factorial_tiny"])
def test_the_factorial_is_complete_and_its_cells_have_equal_budgets(name):
    config = load_experiment(FOLDER / f"{name}.yaml").config
    cells = {(m.strategy.name, m.reasoning.name, getattr(m.reasoning.settings, "source", None)) for m in config.methods}
    for strategy in ("full_finetune", "lora"):
        assert {(strategy, "cot", None), (strategy, "coconut", None), (strategy, "softcot", "assistant")} <= cells
    frozen = {
        ("frozen_backbone", "softcot", "free"),
        ("frozen_backbone", "coconut", None),
        ("frozen_backbone", "softcot", "assistant"),
    }
    assert frozen <= cells and len(config.methods) == 9
    budgets = {(t.examples, t.steps, t.global_batch_size) for t in map(config.train_for, config.methods)}
    assert len(budgets) == 1


RESULTS = FOLDER / "results"
KEPT = sorted(path.parent for path in RESULTS.glob("*/runs.jsonl.gz"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_results_hold_every_run(folder):
    """A table without its runs cannot be checked by anybody."""
    kept = read(folder)
    config = load_experiment(folder / "config.yaml").config
    planned = sorted(f"{m.name}.{o}.seed{s}" for m in config.methods for o in config.orders for s in config.seeds)
    assert list(kept.runs) == planned and not kept.unfinished


# Those kept before the later ones had a bound of their own.
FIRST = {
    "capability", "capability_25", "capability_50", "factorial_tiny", "kl_law", "latent_hops", "layers", "prosqa_small",
    "real_rows", "sequence_a_full", "sequence_a_seeds", "sweeps/learning_rates",
    "sweeps/learning_rates_edge_free_vectors", "sweeps/learning_rates_edge_full_cot", "sweeps/pareto", "sweeps/projector",
    "sweeps/soft_thoughts",
}  # fmt: skip


def test_kept_results_are_small():
    """A repository that is cloned for its code carries no gallery: what can be made again is not kept."""
    sizes: dict[str, list[int]] = {}
    for path in (path for path in RESULTS.rglob("*") if path.is_file()):
        parts = path.relative_to(RESULTS).parts[:-1]
        sizes.setdefault("/".join(parts), []).append(path.stat().st_size)
        assert path.suffix in {".yaml", ".json", ".gz", ".md", ".png", ".svg"}, path
    later = {name: own for name, own in sizes.items() if name not in {"", *FIRST}}
    first = [size for name, own in sizes.items() if name not in later for size in own]
    assert len(first) <= 70 and sum(first) <= 6_000_000, (len(first), sum(first))
    assert all(len(own) <= 5 and sum(own) <= 2_000_000 for own in later.values()), later
    assert sum(map(sum, sizes.values())) <= 25_000_000
