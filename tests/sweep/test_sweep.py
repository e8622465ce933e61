"""The sweep file: what it says, what is wrong with it, and the command that each trial is."""

from __future__ import annotations

import math

import pytest
import yaml
from run_fakes import ROOT, tiny
from sweep_fakes import RATE, experiment, sweep, write

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.results.record import PartialRecord, RunRecord
from cl_softcot.run.api import run_experiment
from cl_softcot.sweep import objectives
from cl_softcot.sweep.__main__ import main
from cl_softcot.sweep.commands import describe
from cl_softcot.sweep.config import load_sweep
from cl_softcot.sweep.folder import existing, write_sweep
from cl_softcot.sweep.launchers.slurm import SlurmWorker, script
from cl_softcot.sweep.samplers import chosen_pruner
from cl_softcot.sweep.space import Distribution, as_override, grid, suggest, values_of
from cl_softcot.sweep.storage import hide

# ------------------------------------------------------------------------------------------------ bad input


def problem(tmp_path, *overrides, base=None, **changes) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(write(tmp_path, sweep(**changes), base), overrides)
    assert not (tmp_path / "sweeps").exists()  # nothing was launched or made
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": {"methods.softcot.strategy.learning_rte": [1.0]}}, "did you mean 'learning_rate'?"),
        ({"space": {"methods.softcott.strategy.learning_rate": [1.0]}}, "did you mean 'softcot'?"),
        ({"space": {RATE: {"low": 0.1, "high": 0.1}}}, "the range is empty: low (0.1) should be less than high (0.1)"),
        ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "with log, low should be above 0"),
        ({"space": {RATE: []}}, "the list of choices is empty"),
        ({"space": {RATE: [0.1, 0.1]}}, "a choice comes twice"),
        ({"space": {"train.steps": {"low": 1, "high": 8, "step": 2}}}, "lead from low (1) to high (8)"),
        ({"space": {"train.steps": {"low": 0, "high": 8}}}, "greater than or equal to 1"),
        ({"space": {"methods.softcot.reasoning.projector": ["linear", "mlpp"]}}, "did you mean 'mlp'?"),
        ({"space": {RATE: {"low": 0.1, "high": 1.0, "when": {"train.steps": 3}}}}, "'train.steps', which is no earlier key"),
        ({"objectives": {"summary.accc": "maximize"}}, "no result holds 'summary.accc'; did you mean 'summary.acc'?"),
        ({"objectives": {"summary.acc": "most"}}, "should be 'maximize' or 'minimize'"),
        ({"constraints": {"cost.parameters": {"at_most": 3}}}, "no result holds 'cost.parameters'"),
        ({"constraints": {"summary.acc": {"at_most": 0.1, "at_least": 0.5}}}, "nothing is at least 0.5 and at most 0.1"),
        ({"set": {"evaluate.split": "test"}}, "evaluate.split is decided by the sweep itself"),
        ({"set": {RATE: 0.1}}, "is decided by `space`"),
        ({"set": {"train.stps": 1}}, "did you mean 'steps'?"),
        ({"select_on": {"first_tasks": 2}}, "first_tasks should be less than the stream's tasks (2)"),
        ({"select_on": "the_end"}, "select_on"),
        (
            {"objectives": {"summary.acc": "maximize", "cost.trained_parameters": "minimize"}, "pruner": "median"},
            "several objectives",
        ),
        ({"objectives": {"cost.train_seconds": "minimize"}, "pruner": "median"}, "only known at the end"),
        ({"sampler": "grid"}, "a grid needs a list of choices"),
        ({"sampler": "tpee"}, "did you mean 'tpe'?"),
        ({"launcher": "slrm"}, "did you mean 'slurm'?"),
        ({"storage": {"kind": "postgresql"}}, "postgresql needs url"),
        ({"storage": {"kind": "sqlite", "grace_seconds": 5.0}}, "at least twice heartbeat_seconds"),
        ({"trials": 0}, "trials"),
        ({"experiment": "bas.yaml"}, "did you mean 'base.yaml'?"),
        ({"for_each": ["softcot", "softcot"]}, "a method comes twice"),
        ({"spce": {}}, "unknown key 'spce'; did you mean 'space'?"),
    ],
)
def test_a_mistake_is_told_before_anything_is_launched(tmp_path, changes, told):
    text = problem(tmp_path, **changes)
    assert told in text
    assert len(text.splitlines()) <= 2, text


def test_a_mistake_has_its_line(tmp_path):
    text = problem(tmp_path, space={RATE: {"low": 0.1, "high": 1.0}, "train.stps": [1, 2]})
    line = (tmp_path / "s.yaml").read_text().splitlines().index("  train.stps:") + 1
    assert text.startswith(f"{tmp_path / 's.yaml'}:{line}:3: space: train.stps: ")


def test_several_methods_are_not_mixed_up(tmp_path):
    text = problem(tmp_path, base=experiment("softcot", "full_coconut"))
    assert "the experiment has 2 methods (softcot, full_coconut)" in text and "for_each: [NAME, ...]" in text


def test_a_password_in_a_file_is_refused_and_not_repeated(tmp_path):
    text = problem(tmp_path, storage={"kind": "postgresql", "url": "postgresql://me:hunter2@host/db"})
    assert "must not hold a password" in text and "hunter2" not in text
    assert (
        hide("could not reach postgresql+psycopg://me:hunter2@host/db?x=1")
        == "could not reach postgresql+psycopg://me:***@host/db?x=1"
    )


def test_no_slurm_no_database_are_told_at_once(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, sweep(storage="journal"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(path), "launcher=slurm"]) == 2
    assert "there is no Slurm on this machine" in capsys.readouterr().err
    assert main([str(path), "launcher=slurm", "storage=sqlite"]) == 2
    assert "sqlite is a storage for one machine" in capsys.readouterr().err
    pytest.importorskip("psycopg")
    assert main([str(path), "storage={kind: postgresql, url: 'postgresql://me@127.0.0.1:1/none'}"]) == 2
    told = capsys.readouterr().err
    assert "the storage cannot be reached" in told and "127.0.0.1:1/none" in told and "Traceback" not in told
    monkeypatch.delenv("NO_SUCH_STORAGE", raising=False)
    assert main([str(path), "storage={kind: postgresql, url_env: NO_SUCH_STORAGE}"]) == 2
    assert "NO_SUCH_STORAGE is not set" in capsys.readouterr().err


def test_status_of_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", "sweeps/none"]) == 2
    assert "no sweep was started here" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "experiments/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_repository_fit_their_experiments(file, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([str(file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"sweep worker {ROOT}/sweeps/{file.stem}" in told or f"output_dir=sweeps/{file.stem}" in told


# ------------------------------------------------------------------------------------------------ the space


class Chosen:
    """Stands for an Optuna trial: takes given values, and counts what it was asked."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def _take(self, key, *_, **__):
        self.asked.append(key)
        return self.values[key]

    suggest_categorical = suggest_int = suggest_float = _take


def test_whole_numbers_stay_whole_and_rates_are_logarithmic():
    assert repr(Distribution(low=1, high=16).optuna()) == "IntDistribution(high=16, log=False, low=1, step=1)"
    assert (
        repr(Distribution(low=1e-3, high=1e-1, log=True).optuna())
        == "FloatDistribution(high=0.1, log=True, low=0.001, step=None)"
    )
    assert Distribution(low=1, high=2.0).whole is False


def test_a_conditional_key_is_asked_for_only_where_it_matters():
    space = {"kind": Distribution(choices=["linear", "mlp"]), "hidden": Distribution(low=8, high=16, when={"kind": "mlp"})}
    linear, mlp = Chosen(kind="linear", hidden=9), Chosen(kind="mlp", hidden=9)
    assert suggest(linear, space) == {"kind": "linear"} and linear.asked == ["kind"]
    assert suggest(mlp, space) == {"kind": "mlp", "hidden": 9}


def test_whole_maps_can_be_choices():
    maps = [{"name": "softcot", "soft_thoughts": 2}, {"name": "softcot", "source": "free"}, "direct"]
    space = {"r": Distribution(choices=maps)}
    labels = space["r"].optuna().choices
    assert all(isinstance(label, str) for label in labels)
    assert [values_of({"r": label}, space)["r"] for label in labels] == maps


def test_a_grid_has_every_combination_once():
    space = {
        "kind": Distribution(choices=["linear", "mlp"]),
        "hidden": Distribution(choices=[8, 16], when={"kind": "mlp"}),
        "n": Distribution(low=1, high=3, step=1),
    }
    combinations = [tuple(params.values()) for params in grid(space)]
    assert combinations == [("linear", 1), ("linear", 2), ("linear", 3), *(("mlp", h, n) for h in (8, 16) for n in (1, 2, 3))]


@pytest.mark.parametrize(
    "value", [1e-5, 0.1 + 0.2, 3, True, None, "true", "3", "plain", "a: b", "", "1e-3", [1, "x"], {"a": {"b": None}}]
)
def test_every_value_survives_the_command_line(tmp_path, value):
    """As the command line is read: the override `tracking.experiment=...` stands for any key."""
    from cl_softcot.config import yaml as _yaml

    tree = _yaml.parse("a: 1", "f")
    _yaml.override(tree, as_override("key", value), {}, 1)
    assert not tree.problems and tree.data["key"] == value and type(tree.data["key"]) is type(value)


# ------------------------------------------------------------------------------------------------ a trial's command


def test_a_trial_is_a_command(tmp_path):
    plan = load_sweep(write(tmp_path)).plans()[0]
    loaded = load_experiment(plan.trial_experiment, plan.trial_overrides({RATE: 0.02})).config
    assert loaded.method("softcot").strategy.settings.learning_rate == 0.02
    assert loaded.evaluate.split == "valid" and loaded.seeds == [0] and loaded.tracking.experiment == "sweep s"
    tested = load_experiment(plan.sweep.experiment, plan.test_overrides({RATE: 0.02})).config
    assert tested.evaluate.split == "test"


def test_first_tasks_hide_the_rest_of_the_stream_from_the_tuner(tmp_path):
    plan = load_sweep(write(tmp_path, sweep(select_on={"first_tasks": 1}))).plans()[0]
    assert plan.trial_config({}).orders == {"given": ["first"]}
    tested = load_experiment(plan.sweep.experiment, plan.test_overrides({})).config
    assert tested.orders == {"given": ["first", "second"]}
    assert not plan.sweep.select_on.saw_the_future
    assert load_sweep(write(tmp_path)).select_on.saw_the_future


def test_another_sequence_is_what_trials_run(tmp_path):
    other = experiment()
    other["tasks"] = other["tasks"][::-1][:1]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    plan = load_sweep(write(tmp_path, sweep(select_on={"other_sequence": "other.yaml"}))).plans()[0]
    assert [t.name for t in plan.trial_config({}).tasks] == ["second"]
    assert not plan.sweep.select_on.saw_the_future and plan.sweep.experiment.endswith("base.yaml")


def test_each_method_has_a_search_of_its_own(tmp_path):
    data = sweep(for_each=["softcot", "full_coconut"], space={"methods.{method}.strategy.learning_rate": [0.1, 0.2]})
    plans = load_sweep(write(tmp_path, data, experiment("full_coconut", "softcot"))).plans()
    assert [plan.study_name for plan in plans] == ["s.softcot", "s.full_coconut"]
    assert [list(plan.space) for plan in plans] == [[f"methods.{m}.strategy.learning_rate"] for m in ("softcot", "full_coconut")]
    assert [[m.name for m in plan.trial_config({}).methods] for plan in plans] == [["softcot"], ["full_coconut"]]
    assert len({plan.fingerprint() for plan in plans}) == 2 and len({plan.folder for plan in plans}) == 2


def test_the_fingerprint_is_of_what_a_trial_is(tmp_path):
    def fingerprint(base=None, **changes):
        return load_sweep(write(tmp_path, sweep(**changes), base)).plans()[0].fingerprint()

    first = fingerprint()
    for same in ({"trials": 9}, {"launcher": "local"}, {"retries": 1}, {"sampler": "tpe"}):
        assert fingerprint(**same) == first, same
    others = [
        fingerprint(seeds=[1]),
        fingerprint(set={"train.steps": 3}),
        fingerprint(objectives={"summary.acc": "minimize"}),
        fingerprint(space={RATE: {"low": 1e-3, "high": 1e-2, "log": True}}),
        fingerprint(base=experiment(train={"steps": 5})),
        fingerprint(select_on={"first_tasks": 1}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_the_resolved_file_reads_back_as_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = sweep(
        space={"methods.softcot.reasoning.projector": ["linear", "mlp"], RATE: {"low": 1e-3, "high": 1e-1, "log": True}},
        launcher={"name": "slurm", "gpus": 1, "sbatch": {"constraint": "h100"}},
        storage={"kind": "postgresql", "url_env": "X"},
        constraints={"cost.trained_parameters": {"at_most": 1e5}},
        select_on={"first_tasks": 1},
    )
    loaded = load_sweep(write(tmp_path, data))
    write_sweep(loaded)
    assert existing("sweeps/s") == loaded


def test_pruning_is_off_unless_learning_alone_is_measured(tmp_path):
    def pruner(**changes):
        return chosen_pruner(load_sweep(write(tmp_path, sweep(**changes))).plans()[0]).name

    assert pruner() == "none"
    assert pruner(objectives={"summary.bwt/gem": "maximize"}) == "none"
    assert pruner(objectives={"summary.learning_accuracy": "maximize"}) == "median"
    assert pruner(objectives={"summary.learning_accuracy": "maximize"}, pruner="none") == "none"
    assert pruner(pruner="halving") == "halving"


def test_a_dry_run_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, sweep(seeds=[0, 1]))
    assert main([str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "python -m cl_softcot.run base.yaml" in told and "evaluate.split=valid" in told and "'seeds=[0, 1]'" in told
    assert not (tmp_path / "sweeps").exists()


def test_the_script_for_sites_without_submitit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = {
        "name": "slurm", "workers": 6, "array_parallelism": 2, "partition": "gpu", "account": "me", "time_minutes": 90,
        "gpus": "a100:1",
        "memory_gb": 1.5, "signal_seconds": 30, "setup": ["module load cuda"],
        "sbatch": {"constraint": "h100", "exclusive": True},
    }  # fmt: skip
    sweep_ = load_sweep(write(tmp_path, sweep(launcher=chosen, storage="journal")))
    text = script(sweep_)
    for flag in (
        "array=0-5%2", "partition=gpu", "account=me", "time=90", "gres=gpu:a100:1", "mem=1536M", "signal=USR2@30", "requeue",
        "constraint=h100", "exclusive", "cpus-per-task=1",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in text, flag
    assert text.startswith("#!/bin/bash\n#SBATCH") and "module load cuda\n" in text
    assert f"-m cl_softcot.sweep worker {tmp_path}/sweeps/s\n" in text
    assert main([str(tmp_path / "s.yaml"), "--dry-run"]) == 0
    assert "# first, once: python -m cl_softcot.sweep create" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ objectives


@pytest.mark.parametrize("data", [experiment(), tiny("softcot")], ids=["small", "embedded"])
def test_the_names_are_those_that_a_result_holds(tmp_path, data):
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(data))
    config = load_experiment(path).config
    held = run_experiment(config, folder=tmp_path / "out")[0]
    names = objectives.names(config)
    for name in names:
        objectives.value(held, name)  # raises for a name that a result does not hold
    assert {f"summary.{k}" for k, v in held.summary.items() if isinstance(v, float)} <= {*names}
    assert {f"cost.{k}" for k, v in held.cost.as_dict().items() if isinstance(v, int | float)} == {
        f"cost.{n}" for n in objectives.COSTS
    }
    kls = {f"drift.as_used.{k}" for k in held.drift.as_used[-1] if k.startswith(("forward_kl/", "reverse_kl/"))}
    assert kls == {n for n in names if n.startswith("drift.as_used")}
    assert "retention.as_used.unrelated" in names and held.retention.as_used[-1]


DATA: dict = {
    "method": "m", "tasks": ["a"], "accuracy": {"matrix": [[0.1], [0.5]]},
    "summary": {"acc": 0.5, "acc_interval": [0.4, 0.6], "bwt/gem": None},
    "retention": {"as_used": [{"all": 1.0}, {"all": 0.25, "families": {"words": 0.5}}]},
    "drift": {"as_used": [{"forward_kl/general": 0.0}, {"forward_kl/general": 2.0}]},
    "cost": {"trained_parameters": 12},
}  # fmt: skip
RESULT = RunRecord.model_validate(DATA)


def test_the_last_row_counts():
    assert objectives.value(RESULT, "retention.as_used.all") == 0.25
    assert objectives.value(RESULT, "drift.as_used.forward_kl/general") == 2.0
    assert objectives.value(RESULT, "retention.as_used.families.words") == 0.5
    assert objectives.value(RESULT, "cost.trained_parameters") == 12.0
    assert objectives.value(RESULT, "summary.bwt/gem") is None
    with pytest.raises(UserError, match="no result holds"):
        objectives.value(RESULT, "summary.nothing")


def test_a_trial_is_judged_by_the_mean_over_its_runs():
    other = RunRecord.model_validate({**DATA, "summary": {"acc": 0.7}})
    assert objectives.mean_value([RESULT, other], "summary.acc") == pytest.approx(0.6)
    with pytest.raises(UserError, match="not defined"):
        objectives.mean_value([RESULT], "summary.bwt/gem")
    assert objectives.interval([RESULT], "summary.acc") == [0.4, 0.6]
    low, high = objectives.interval([RESULT, other], "summary.acc")
    assert (low, high) == (0.5, 0.7)


def test_values_so_far_are_over_the_tasks_learned_so_far():
    matrix = [[0.1, 0.2, 0.3], [0.8, 0.0, 0.0], [0.4, 0.6, 0.0]]
    rows = [{"all": 1.0}, {"all": 0.9}, {"all": 0.7}]
    partial = PartialRecord.model_validate({"accuracy": {"matrix": matrix}, "retention": {"as_used": rows}})
    early = [PartialRecord.model_validate({"accuracy": {"matrix": matrix[:n]}}) for n in (1, 2)]
    assert objectives.so_far(partial, "summary.acc") == pytest.approx((0.4 + 0.6) / 2)
    assert objectives.so_far(partial, "summary.learning_accuracy") == pytest.approx((0.8 + 0.6) / 2)
    assert objectives.so_far(early[1], "summary.acc") == pytest.approx(0.8)
    assert objectives.so_far(early[0], "summary.acc") is None
    assert objectives.so_far(partial, "retention.as_used.all") == 0.7


def test_bounds():
    from cl_softcot.sweep.config import Bound

    assert Bound(at_most=10).excess(12.0) == 2.0 and Bound(at_most=10).excess(4.0) == -6.0
    assert Bound(at_least=0.5).excess(0.25) == 0.25 and math.isclose(Bound(at_least=0.5, at_most=0.8).excess(0.7), -0.1)


def test_a_description_names_what_is_done(tmp_path):
    loaded = load_sweep(write(tmp_path, sweep(seeds=[3])))
    text = describe(loaded, loaded.plans())
    assert "maximize summary.acc; 3 complete trials, 1 seed each" in text and "knowing the whole stream" in text


def test_a_job_fails_where_its_worker_does(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="ended with status 2"):
        SlurmWorker(str(tmp_path))()
    assert capsys.readouterr().err.startswith("error: ")
