"""The traps of avalanche-lib 0.6.0, one test each: that it is (still) there, and that we do not fall into it.

A test that fails on its first half says that Avalanche has changed and something here may be simplified.
"""

import dataclasses
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from learning_fakes import FakeStrategy, Train, make_learner, weights_sha256
from torch import nn

from cl_softcot.errors import UserError
from cl_softcot.learning import checkpoint
from cl_softcot.learning.loop import MethodModel, TrainingLoop
from cl_softcot.learning.stream import make_stream

# isort: split
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.checkpointing import save_checkpoint
from avalanche.evaluation.metrics import GenericExperienceForgetting, Mean
from avalanche.evaluation.metrics.forgetting_bwt import Forgetting
from avalanche.models import DynamicModule, MultiTaskModule
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins import (
    AGEMPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from avalanche.training.templates.observation_type import BatchObservation

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)


NO_SOLVER = """
    import sys
    for name in (
        "quadprog cvxopt kvxopt daqp ecos gurobipy highspy mosek osqp piqp proxsuite qpalm qpoases qpSWIFT "
        "scs hpipm_python clarabel jaxopt sip_python copt"
    ).split():
        sys.modules[name] = None
    from cl_softcot.machine.torchvision import ensure_torchvision
    ensure_torchvision()
"""


# --- import ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trap_importing_avalanche_warns_about_missing_qp_solvers():
    stock = run_python(NO_SOLVER + "    import avalanche.training.plugins")
    assert "no QP solver found" in stock.stderr
    ours = run_python(
        NO_SOLVER
        + """
    import cl_softcot.learning.loop
    import warnings
    warnings.warn("no QP solver found, and the filter is gone again")
    """
    )
    assert ours.returncode == 0, ours.stderr
    assert "on your system" not in ours.stderr and "the filter is gone again" in ours.stderr
    assert ours.stdout == ""


@pytest.mark.slow
def test_trap_a_torchvision_that_does_not_fit_torch_breaks_avalanche():
    """Run in a new process, since whoever imported torchvision first in this one has mended it."""
    done = run_python("import cl_softcot.learning.stream, avalanche; print('imported')")
    assert done.returncode == 0 and "imported" in done.stdout, done.stderr


def test_trap_importing_avalanche_takes_seconds():
    done = run_python(
        """
        import sys, cl_softcot, cl_softcot.errors, cl_softcot.files, cl_softcot.registry
        assert "avalanche" not in sys.modules and "torch" not in sys.modules
        """
    )
    assert done.returncode == 0, done.stderr


# --- the template ----------------------------------------------------------------------------------


def test_trap_training_ignores_collate_fn_without_task_labels():
    learner, stream = make_learner()
    bare = benchmark_from_datasets(train=[turn.experience.dataset for turn in stream]).train_stream[0]
    assert not hasattr(bare, "task_labels") and hasattr(stream[0].experience, "task_labels")

    class Stock(TrainingLoop):
        make_train_dataloader = BaseSGDTemplate.make_train_dataloader

    stock = Stock(learner=learner)
    stock.experience, stock.adapted_dataset = bare, bare.dataset
    stock.make_train_dataloader()
    with pytest.raises(TypeError, match="default_collate"):
        next(iter(stock.dataloader))

    turn = dataclasses.replace(stream[0], experience=bare)
    bare.fingerprint, bare.examples = "x", stream[0].examples
    assert learner.loop(turn).steps == 6


def test_trap_the_first_train_puts_frozen_parameters_into_the_optimiser():
    learner, stream = make_learner(strategy=FakeStrategy(("lm_head",)))
    model = MethodModel(learner.parts)
    optimizer = torch.optim.AdamW(learner.strategy.trainable(learner.parts))
    update_optimizer(optimizer, dict(model.named_parameters()), None, reset_state=True)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters())) > 1  # the trap

    seen = []
    learner.on_step = lambda _: seen.append(learner.training.optimizer.param_groups)
    learner.loop(stream[0])
    assert [len(group["params"]) for group in seen[0]] == [1]
    assert list(learner.training.optimized_param_id) == ["backbone.lm_head.weight"]


def test_trap_two_parameter_groups_raise():
    attention = "model.layers.0.self_attn"
    strategy = FakeStrategy((f"{attention}.q_proj", f"{attention}.k_proj"))
    learner, stream = make_learner(strategy=strategy)

    class Stock(TrainingLoop):
        make_optimizer = BatchObservation.make_optimizer

    stock = Stock(learner=learner)
    stock.optimizer = torch.optim.AdamW(strategy.trainable(learner.parts))
    with pytest.raises(AttributeError, match="single_group|group"):
        stock.make_optimizer(reset_optimizer_state=True)

    groups = []
    learner.on_step = lambda _: groups.append(len(learner.training.optimizer.param_groups))
    learner.loop(stream[0])
    assert groups == [2] * 6


def test_trap_train_puts_frozen_modules_into_train_mode():
    learner, stream = make_learner(strategy=FakeStrategy(("lm_head",)), dropout=0.5)
    model = MethodModel(learner.parts)
    nn.Module.train(model)
    assert learner.parts.backbone.model.model.layers[0].self_attn.training  # the trap: its dropout is on

    modes = {}
    learner.on_step = lambda _: modes.update({name: module.training for name, module in learner.training.model.named_modules()})
    learner.loop(stream[0])
    assert modes["backbone.lm_head"] and modes[""]
    assert not any(training for name, training in modes.items() if name.startswith("backbone.model"))
    assert not any(module.training for module in learner.training.model.modules())  # and all off afterwards


def test_trap_dropout_has_no_parameters_and_follows_the_module_around_it():
    def dropout_inside(trained: bool) -> bool:
        block = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(trained)
        parts = SimpleNamespace(backbone=SimpleNamespace(model=block), reasoning=nn.Linear(1, 1))
        return MethodModel(parts).train().backbone[1].training

    assert dropout_inside(trained=True) and not dropout_inside(trained=False)


def test_trap_strategy_loss_is_an_attribute():
    assert not hasattr(SupervisedTemplate, "loss") and not hasattr(TrainingLoop, "loss")
    learner, _ = make_learner()
    assert torch.is_tensor(learner.training.loss)


def test_trap_an_evaluator_without_loggers_warns(recwarn):
    EvaluationPlugin(loggers=[])
    assert any("No loggers specified" in str(w.message) for w in recwarn)
    recwarn.clear()
    make_learner()
    assert not recwarn.list


def test_every_hook_is_called_once_per_optimiser_step_in_the_templates_order():
    class Recorder:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            if name.startswith(("before_", "after_")):
                return lambda strategy, **_: self.calls.append(name)
            raise AttributeError(name)

    learner, stream = make_learner(train=Train(steps=2, micro_batch_size=3))
    recorder = Recorder()
    learner.training.plugins.insert(0, recorder)
    learner.loop(stream[0])
    step = [
        "before_training_iteration",
        "before_forward",
        "after_forward",
        "before_backward",
        "after_backward",
        "before_update",
        "after_update",
        "after_training_iteration",
    ]
    assert recorder.calls == [
        "before_training",
        "before_train_dataset_adaptation",
        "after_train_dataset_adaptation",
        "before_training_exp",
        "before_training_epoch",
        *step,
        *step,
        "after_training_epoch",
        "after_training_exp",
        "after_training",
    ]


def test_a_penalty_added_before_backward_counts_once_whatever_the_micro_batches():
    class Penalty(EWCPlugin):
        def __init__(self):
            pass

        def before_backward(self, strategy, **_):
            strategy.loss += sum(p.square().sum() for p in strategy.optimized_param_id.values())

        def after_training_exp(self, strategy, **_):
            pass

    gradients = []
    for micro_batch_size in (None, 2):
        learner, stream = make_learner(train=Train(steps=1, micro_batch_size=micro_batch_size, gradient_clip=1e9))
        learner.training.plugins.insert(0, Penalty())
        learner.loop(stream[0])
        gradients.append([p.grad.clone() for p in learner.strategy.named.values()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_trap_replay_calls_a_deprecated_function_that_changes_the_warning_filters():
    with warnings.catch_warnings():
        _, stream = make_learner()
        with pytest.warns(DeprecationWarning, match="deprecated function update"):
            stock = ReplayPlugin(mem_size=4)
            stock.after_training_exp(SimpleNamespace(experience=stream[0].experience))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        learner, stream = make_learner(plugins=[{"name": "avalanche.training.plugins:ReplayPlugin"}])
        learner.loop(stream[0])
        assert warnings.filters == before
    assert len(learner.plugins[0].storage_policy.buffer) == len(stream[0].examples)


# --- batches and plugins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plugin",
    [
        {"name": "replay", "mem_size": 8},
        {"name": "avalanche.training.plugins:EWCPlugin", "ewc_lambda": 1.0},
        {"name": "avalanche.training.plugins:AGEMPlugin", "patterns_per_experience": 4, "sample_size": 4},
    ],
    ids=lambda plugin: plugin["name"].split(":")[-1],
)
def test_trap_plugins_need_the_batch_protocol_and_these_run_unchanged(plugin):
    """b[0] is the batch itself, b[1] the labels, b[-1] the task ids."""
    (plain, _), (with_plugin, _) = two_turns(), two_turns(plugin)
    if plugin["name"].endswith("AGEMPlugin"):  # it changes weights only where gradients conflict
        assert with_plugin.plugins[0].reference_gradients.norm() > 0
    else:
        assert weights_sha256(with_plugin) != weights_sha256(plain)


def two_turns(*plugins):
    learner, stream = make_learner(train=Train(steps=3), noise=0.0, plugins=plugins)
    return learner, [learner.loop(turn) for turn in stream[:2]]


def test_trap_synaptic_intelligence_does_nothing_on_a_cpu():
    """Its old weights, `param.detach().cpu().flatten()`, are a view of the live ones: none ever moved."""
    plugin = {"name": "avalanche.training.plugins:SynapticIntelligencePlugin", "si_lambda": 1e6}
    with pytest.raises(UserError, match="on a CPU it does nothing"):
        two_turns(plugin)
    plain, _ = two_turns()
    learner, stream = make_learner(train=Train(steps=3), noise=0.0)
    learner.training.plugins.insert(0, SynapticIntelligencePlugin(si_lambda=1e6))
    for turn in stream[:2]:
        learner.loop(turn)
    assert weights_sha256(learner) == weights_sha256(plain)


@pytest.mark.parametrize("make", [lambda: LwFPlugin(), lambda: MASPlugin()], ids=["LwF", "MAS"])
def test_trap_these_plugins_take_targets_for_class_numbers(make):
    learner, stream = make_learner(train=Train(steps=1))
    learner.training.plugins.insert(0, make())
    with pytest.raises(Exception):  # noqa: B017 - each fails in its own way; build_plugin says it in words
        for turn in stream:
            learner.loop(turn)


def test_trap_class_balanced_replay_needs_integer_targets():
    _, stream = make_learner()
    with pytest.raises(AssertionError):
        ClassBalancedBuffer(4).update_from_dataset(stream[0].experience.dataset)


def test_trap_stock_agem_and_replay_keep_the_collate_of_the_dataset():
    learner, stream = make_learner()
    dataset = stream[0].experience.dataset
    assert dataset.collate_fn is learner.collate
    assert dataset.subset([1, 2]).collate_fn is learner.collate
    assert dataset.concat(stream[1].experience.dataset).collate_fn is learner.collate
    assert AGEMPlugin(4, 4).buffers == []


# --- EWC -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ScalarLoss:
    loss_sum: torch.Tensor
    n_tokens: int
    per_example_B: torch.Tensor


class Scalar(nn.Module):
    """loss_i = (p - target_i)^2, with a frozen weight beside the trained one."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, targets_B: torch.Tensor) -> ScalarLoss:
        losses_B = (self.p - targets_B) ** 2
        return ScalarLoss(losses_B.sum(), len(losses_B), losses_B)


def test_trap_stock_ewc_squares_the_mean_gradient_and_copies_frozen_weights():
    """At convergence the gradients of a batch cancel: importance 0 where the Fisher information is not."""
    model = Scalar()
    targets = torch.tensor([1.0, -1.0])

    class Rows(torch.utils.data.Dataset):
        collate_fn = staticmethod(lambda rows: (torch.stack(rows), torch.zeros(len(rows)), torch.zeros(len(rows))))

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return targets[i]

    plugin = EWCPlugin(ewc_lambda=1.0)
    optimizer = torch.optim.SGD([model.p], lr=1.0)
    stock = plugin.compute_importances(model, lambda out, _: out.loss_sum / out.n_tokens, optimizer, Rows(), "cpu", batch_size=2)
    assert stock["p"].data.item() == 0.0
    assert "frozen" in stock  # memory for weights that never move

    gradients = [torch.autograd.grad(loss, model.p, retain_graph=True)[0] for loss in model(targets).per_example_B]
    assert torch.stack(gradients).square().mean().item() == 4.0  # what per_example_B is there for


# --- benchmark -------------------------------------------------------------------------------------


def test_trap_task_labels_come_last_and_rows_stay_dicts():
    learner, stream = make_learner()
    for index, turn in enumerate(stream):
        experience = turn.experience
        assert experience.task_labels == [index] and experience.current_experience == index
        row = experience.dataset[0]
        assert row == {
            "turn": index,
            "index": 0,
            "example": turn.examples[0],
            "targets_task_labels": index,
        }
    assert len(stream.train_stream) == 3 and stream[0].experience is stream.train_stream[0]


def test_trap_avalanche_writes_the_task_label_into_the_row_it_gets():
    learner, stream = make_learner()
    dataset = stream[0].experience.dataset
    dataset[0]["example"] = None
    assert dataset[0]["example"] is stream[0].examples[0]


def test_trap_slicing_does_not_give_a_dataset():
    _, stream = make_learner()
    dataset = stream[0].experience.dataset
    try:
        sliced = dataset[2:5]
    except Exception:  # noqa: BLE001 - our rows have no slices at all
        sliced = None
    assert not isinstance(sliced, AvalancheDataset)
    subset = dataset.subset([4, 2])
    assert isinstance(subset, type(dataset)) and [row["index"] for row in (subset[0], subset[1])] == [4, 2]


def test_trap_an_experience_in_train_mode_hides_its_index():
    """Hence Turn.index, and the turn in every row."""
    _, stream = make_learner()
    with pytest.raises(Exception, match="not available for the experience in train mode"):
        _ = stream[1].experience.train().current_experience
    assert stream[1].index == 1 and stream[1].experience.dataset[0]["turn"] == 1


# --- metrics ---------------------------------------------------------------------------------------

GOLDEN = [
    [0.60, 0.20, 0.10, 0.05],
    [0.80, 0.75, 0.15, 0.05],
    [0.76, 0.60, 0.70, 0.10],
    [0.70, 0.62, 0.78, 0.65],
]


def test_trap_avalanches_forgetting_is_first_minus_last():
    forgetting = Forgetting()
    for i, row in enumerate(GOLDEN):
        for j in range(i + 1):
            forgetting.update(j, row[j], initial=i == j)
    values = forgetting.result()
    assert sum(values[j] for j in range(3)) / 3 == pytest.approx(-0.0167, abs=1e-4)
    matrix = pytest.importorskip("cl_softcot.metrics.matrix")
    ours = matrix.forgetting_chaudhry([[0.25, 0.12, 0.08, 0.04], *GOLDEN])
    assert ours == pytest.approx(0.05)  # the one named after its paper is another number


def test_trap_forgetting_of_two_streams_shares_its_keys():
    class Accuracy(GenericExperienceForgetting):
        def __init__(self):
            super().__init__(Mean())

        def metric_update(self, strategy):
            self._current_metric.update(1.0, 1)

        def metric_result(self, strategy):
            return self._current_metric.result()

        def result_key(self, k):
            return self.forgetting.result_key(k)

        def result(self):
            return self.forgetting.result()

        def __str__(self):
            return "Forgetting"

    metric = Accuracy()
    learner, stream = make_learner()
    learner.training.evaluator.metrics.append(metric)
    other = make_stream([("other", stream[2].examples)], learner.collate)
    learner.collate.set_moment(0, 0, learner.parts.reasoning.phases(1)[0])
    learner.training.clock.train_exp_counter = 1
    learner.training.eval(stream.train_stream[0:1])
    learner.training.eval(other.train_stream)
    assert list(metric.forgetting.initial | metric.forgetting.last) == [0]  # two tasks, one entry


# --- checkpoints -----------------------------------------------------------------------------------


def test_trap_stock_save_checkpoint_fails_and_leaves_a_truncated_file(tmp_path):
    learner, stream = make_learner()
    learner.loop(stream[0])
    path = tmp_path / "stock.pkl"
    with pytest.raises(Exception):  # noqa: B017 - dill's own
        save_checkpoint(learner.training, path)
    assert path.exists()

    snapshot = learner.state_dict()
    checkpoint.save(tmp_path, "ours", snapshot["tensors"], snapshot["state"])
    found = checkpoint.load_latest(tmp_path)
    other, stream = make_learner()
    other.load_state_dict({"tensors": found.tensors, "state": found.state}, stream)
    assert weights_sha256(other) == weights_sha256(learner)


# --- per-task parts --------------------------------------------------------------------------------


def test_trap_multi_task_module_wants_classes_and_dynamic_module_does_not():
    learner, stream = make_learner()
    with pytest.raises(AttributeError, match="classes_in_this_experience"):
        MultiTaskModule().adaptation(stream[0].experience)

    class PerTask(DynamicModule):
        def __init__(self):
            super().__init__()
            self.seen = []

        def adaptation(self, experience):
            self.seen.append(experience.task_label)

    learner.parts.reasoning.per_task = PerTask()
    for turn in stream:
        learner.loop(turn)
    assert learner.parts.reasoning.per_task.seen == [0, 1, 2]


def test_the_plugins_that_run_here_are_those_that_are_not_refused():
    from cl_softcot.learning.plugins import UNUSABLE_PLUGINS

    usable = {EWCPlugin, AGEMPlugin, ReplayPlugin}
    assert not {cls.__name__ for cls in usable} & set(UNUSABLE_PLUGINS)
    assert {LwFPlugin.__name__, MASPlugin.__name__} <= set(UNUSABLE_PLUGINS)
