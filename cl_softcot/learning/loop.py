"""The one training loop, read top to bottom in ``TrainingLoop.training_epoch``.

A turn is an exact number of optimiser steps. The loop is Avalanche's ``SupervisedTemplate``, so that its
plugins attach to every method. What differs from the template, and why:

* **Equal budgets.** A turn takes ``train.steps`` steps of ``train.global_batch_size`` examples, whatever the
  size of the data. Replayed examples take places in the batch; they never make it larger.
* **One iteration is one optimiser step.** Plugin hooks see the global batch, in however many micro-batches it
  is computed.
* **Losses are summed, and divided once**, by the tokens of the whole global batch (``mean_over_tokens``).
* **Order is arithmetic.** Which examples make up a step, and every random number of the encoding, follow from
  (seed, turn, step); a resumed run asks for step 57 and gets what the uninterrupted one got.
* **The optimiser lives for a turn**: AdamW, fresh at its start. ``train.reset_optimizer`` can reset it at every
  stage of a curriculum or at every pass through the data.
* **Several processes** split the rows of every global batch, and sum their gradients before the plugins see
  them (``machine/processes.py``). Plugins see the same batch, the same loss and the same gradient everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from cl_softcot.errors import UserError
from cl_softcot.learning.batches import ExactSteps, taken_from
from cl_softcot.learning.checkpoint import capture_rng, restore_rng
from cl_softcot.learning.loss import detached, labelled_tokens, mean_over_tokens, merge_losses
from cl_softcot.learning.optimiser import check_trainable, learning_rate_factor, leaves, make_adamw, put_leaf
from cl_softcot.learning.snapshot import Snapshot, TurnReport, Under, identity_of_turn
from cl_softcot.learning.stream import Turn
from cl_softcot.machine import processes
from cl_softcot.models.own_weights import only_looks

# Avalanche comes after stream.py, which prepares its import.
# isort: split
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate

if TYPE_CHECKING:
    from cl_softcot.learning.learner import Learner

LOSS_WINDOW = 10  # steps per entry of TurnReport.losses
HALF_SCALE = 4096.0  # fp16 ends at 6e-8: gradients of a loss per token would vanish on their way through the backbone


class TrainingLoop(SupervisedTemplate):
    """Avalanche's side of the learner: the template whose hooks the plugins use.

    What plugins find in it (they call it ``strategy``): ``mbatch`` is the global batch, ``mb_output`` its
    ``Loss``, ``optimized_param_id`` the trained parameters by name, ``model(batch)`` the ``Loss`` of a batch.
    ``Loss.per_example_B`` holds one loss sum per example, so that gradients can be taken example by example.
    """

    dataloader: ExactSteps
    model: MethodModel

    def __init__(self, *, learner: Learner):
        self.learner = learner
        self.turn: Turn | None = None
        self._watched = False
        super().__init__(
            model=MethodModel(learner.parts),
            optimizer=None,  # made afresh at the start of every turn
            criterion=lambda output, _labels: mean_over_tokens(output.loss_sum, output.n_tokens),
            train_mb_size=learner.train.global_batch_size,
            device=_device_of(learner.parts),
            plugins=learner.plugins,
            evaluator=EvaluationPlugin(loggers=[_NoLogger()] if processes.is_main() else None),
        )

    @property
    def running(self) -> Turn:
        """The turn between ``begin_turn`` and ``end_turn``."""
        assert self.turn is not None, "no turn is running"
        return self.turn

    # --- the turn ------------------------------------------------------------------------------

    def training_epoch(self, **kwargs: Any) -> None:
        """All steps of the turn. Every hook is called once per optimiser step, in the template's order."""
        self._restore_position()
        for step, phase, batch in self.dataloader:
            if self._stop_training:
                break
            self.step, self.phase, self.mbatch = step, phase, batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.optimizer.zero_grad()
            self._reset_optimizer_where_wanted()
            self._set_learning_rate()

            self._before_forward(**kwargs)
            self.mb_output, self.loss = self._forward_in_micro_batches()
            self._after_forward(**kwargs)
            step_loss = self._finite(self.loss, "the loss")

            without_penalties = self.loss
            self._before_backward(**kwargs)  # where penalties are added to self.loss
            self._count_penalties_once(without_penalties)
            self.backward()
            processes.reshard(self.model.backbone)
            processes.sum_gradients(self._trained)
            self._unscale()
            self._after_backward(**kwargs)

            gradient_norm = processes.clip_gradients(self._trained, self.learner.train.gradient_clip or math.inf)
            self._finite(gradient_norm, "the gradient")
            self._before_update(**kwargs)
            self.optimizer_step()
            self._after_update(**kwargs)

            self._after_training_iteration(**kwargs)
            self._count_step(step_loss)
            self._maybe_checkpoint()

    def _forward_in_micro_batches(self) -> tuple[Any, Tensor]:
        """Loss of the global batch, in nats per token; only its last micro-batch still needs a backward pass.

        The earlier ones have theirs here, so that one graph is in memory at a time. The returned loss has the
        value of the whole, of all processes, and the graph of this one's last micro-batch.
        """
        n_tokens = labelled_tokens(self.mbatch)
        micro_batches = self._micro_batches()
        outputs, loss = [], self._make_empty_loss()
        with processes.own_random_numbers(f"{self.learner.seed}/{self.running.index}/{self.step}"):
            for micro_batch in micro_batches:
                output = self._forward(micro_batch)
                part = mean_over_tokens(output.loss_sum, n_tokens)
                if micro_batch is not micro_batches[-1]:
                    (part * self._scale).backward()
                    part, output = part.detach(), detached(output)
                outputs.append(output)
                loss = loss + part
        merged = merge_losses(outputs)
        if processes.size() > 1:
            merged, loss = self._of_all_processes(merged, loss)
        if merged.n_tokens != n_tokens:
            raise ValueError(
                f"{type(self.learner.parts.reasoning).__name__}.loss counted {merged.n_tokens} tokens, "
                f"its batch has {n_tokens} labels"
            )
        return merged, loss

    @property
    def _scale(self) -> float:
        """What losses are multiplied by on their way back, and gradients divided by afterwards."""
        return HALF_SCALE if self.learner.parts.backbone.compute_dtype == torch.float16 else 1.0

    def backward(self) -> None:
        (self.loss * self._scale).backward()

    def optimizer_step(self) -> None:
        """The template's. Torch does not count what its fused optimisers write; what is kept of weights
        (``models.head``, ``models.frozen_prefix``) goes by that count."""
        super().optimizer_step()
        increment_version(self._trained)

    def _unscale(self) -> None:
        if self._scale != 1.0:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad.div_(self._scale)

    def _forward(self, batch: Any) -> Any:
        """The ``Loss`` of a micro-batch. Processes that share weights have to run them equally often."""
        self._passes = 0
        output = self.model(batch)
        if self._counts_passes:
            passes = processes.gathered_from_all(self._passes)
            if len(set(passes)) > 1:
                raise UserError(
                    f"rows of one batch need different numbers of passes ({min(passes)} and {max(passes)}), which "
                    "processes that share their weights cannot do",
                    fix="Give all rows equally many thoughts (no drawn stages, thoughts padded), or train.sharding: none.",
                )
        return output

    def _of_all_processes(self, own: Any, loss: Tensor) -> tuple[Any, Tensor]:
        """The ``Loss`` of the whole global batch: values of all, the graph of this process's rows."""
        size, rows = len(self.mbatch), processes.own_rows(len(self.mbatch))
        per_example_B = own.per_example_B.new_zeros(size)
        per_example_B[rows] = own.per_example_B.detach()
        numbers = torch.stack([t.detach().double().sum() for t in (own.loss_sum, loss, loss.new_tensor(own.n_tokens))])
        loss_sum, value, n_tokens = processes.sum_over_all(numbers)
        merged = dataclasses.replace(
            own,
            loss_sum=loss_sum.to(own.loss_sum.dtype),
            n_tokens=int(n_tokens),
            per_example_B=processes.sum_over_all(per_example_B),
        )
        return merged, loss + (value.to(loss.dtype) - loss.detach())

    def _count_penalties_once(self, without: Tensor) -> None:
        """Gradients of the processes are summed, and a penalty's is the same in all."""
        if processes.size() > 1 and self.loss is not without:
            penalty = self.loss - without
            self.loss = without + penalty.detach() + (penalty - penalty.detach()) / processes.size()

    def _micro_batches(self) -> list[Any]:
        """This process's rows of the global batch, ``train.micro_batch_size`` at a time."""
        size, rows = self.learner.train.micro_batch_size, processes.own_rows(len(self.mbatch))
        mine = self.mbatch if processes.size() == 1 else self.mbatch.rows(rows)
        if size is None or size >= rows.stop - rows.start:
            return [mine]
        return list(mine.split(size))

    def _reset_optimizer_where_wanted(self) -> None:
        """AdamW forgets its means and starts to count its steps anew (``train.reset_optimizer``)."""
        when, step = self.learner.train.reset_optimizer, self.step
        if step and self.dataloader.begins(step, when):
            self.optimizer.state.clear()

    def _set_learning_rate(self) -> None:
        train = self.learner.train
        factor = learning_rate_factor(self.step, self.dataloader.steps, train.warmup_fraction, train.decay_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _finite(self, value: Tensor, what: str) -> float:
        number = float(value.detach())
        if not math.isfinite(number):
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]
            raise self.learner.diverged(self.running, self.step, what, rates)
        return number

    def _count_step(self, loss: float) -> None:
        self.step_losses.append(loss)
        self.tokens += self.mb_output.n_tokens
        if self.learner.on_step is not None:
            began = time.perf_counter()
            self.learner.on_step(
                {
                    "turn": self.running.index,
                    "task": self.running.name,
                    "step": self.step + 1,
                    "steps": self.dataloader.steps,
                    "stage": self.phase.stage,
                    "loss": loss,
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "seconds": self._seconds(),
                }
            )
            self._started += time.perf_counter() - began  # what is measured meanwhile is no learning

    def _maybe_checkpoint(self) -> None:
        every, done = self.learner.train.checkpoint_every_steps, self.step + 1
        if every and done % every == 0 and done < self.dataloader.steps:
            self.learner.take_checkpoint(self.checkpoint)

    # --- its beginning and end -----------------------------------------------------------------

    def begin_turn(self, turn: Turn, model: MethodModel, resume: Snapshot | None, checkpoint: Any) -> None:
        """Sets the turn that ``train`` is about to run."""
        steps, reasoning = self.learner.train.steps, self.learner.parts.reasoning
        self._refuse_uneven_shares()
        self.phases = list(reasoning.phases(steps))
        if sum(phase.steps for phase in self.phases) != steps:
            planned = sum(phase.steps for phase in self.phases)
            raise UserError(
                f"{type(reasoning).__name__} plans {planned} optimiser steps where the budget is {steps}",
                fix="Its phases must add up to train.steps: methods in one table have equal budgets.",
            )
        self.turn, self.model, self.checkpoint, self._resume = turn, model, checkpoint, resume
        self._watch_passes(model)
        self.step_losses: list[float] = []
        self.tokens, self._replayed_per_step = 0, 0
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self.learner.collate.set_moment(turn.index, 0, self.phases[0])

    def _watch_passes(self, model: MethodModel) -> None:
        self._passes, self._counts_passes = 0, any(processes.is_sharded(p) for p in model.backbone.parameters())
        if self._counts_passes and not self._watched:
            self._watched = True

            def count(*_: Any) -> None:
                self._passes += 1

            self.learner.parts.backbone.core.register_forward_pre_hook(only_looks(count))

    def _refuse_uneven_shares(self) -> None:
        """Processes that share weights gather them for every micro-batch, so that all need equally many."""
        batch, n = self.learner.train.global_batch_size, processes.size()
        if n > 1 and self.learner.train.sharding == "full" and batch % n:
            raise UserError(
                f"train.sharding: full needs equal shares, and {n} processes cannot share {batch} examples (global_batch_size)",
                fix=f"Set it to a multiple of {n}, say {batch + n - batch % n}.",
            )

    def end_turn(self) -> None:
        """Lets go of the turn's data; ``train`` does so itself unless it raises."""
        self._seconds_in_all = self._seconds()
        self._train_cleanup()
        self.turn, self._resume, self.checkpoint = None, None, None

    def report(self) -> TurnReport:
        """The turn that ended."""
        losses, steps = self.step_losses, len(self.step_losses)
        windows = [losses[i : i + LOSS_WINDOW] for i in range(0, steps, LOSS_WINDOW)]
        return TurnReport(
            steps=steps,
            examples_seen=steps * self.train_mb_size,
            replayed=steps * self._replayed_per_step,
            tokens=self.tokens,
            losses=[sum(window) / len(window) for window in windows],
            train_seconds=self._seconds_in_all,
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def position(self) -> Snapshot:
        """What a turn in progress adds to a snapshot."""
        rng = capture_rng()
        tensors = {f"rng/{name}": tensor for name, tensor in rng["tensors"].items()}
        numbers: dict[str, int | float] = {}  # of optimisers that count their steps outside of tensors
        for name, value in leaves(self.optimizer.state_dict()["state"]):
            if torch.is_tensor(value):
                tensors[f"optimizer/{name}"] = processes.kept_by_main(value)
            else:
                numbers[name] = value
        state = {
            **identity_of_turn(self.running),
            "step": len(self.step_losses),
            "losses": list(self.step_losses),
            "tokens": self.tokens,
            "seconds": self._seconds(),
            "rng": rng["state"],
            **({"optimizer": numbers} if numbers else {}),
        }
        return {"tensors": tensors, "state": state}

    def _restore_position(self) -> None:
        """Goes to where the resumed snapshot was taken. Called after the hooks that begin a turn."""
        if self._resume is None:
            return
        tensors, state = self._resume["tensors"], self._resume["state"]["turn"]
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in Under("optimizer/", tensors).items():
            parameter = parameters[int(name.split("/")[0])]
            value = processes.like(parameter, value) if value.shape == parameter.shape else value
            put_leaf(optimizer["state"], name, value.clone())
        for name, number in state.get("optimizer", {}).items():
            put_leaf(optimizer["state"], name, number)
        self.optimizer.load_state_dict(optimizer)
        restore_rng({"tensors": Under("rng/", tensors), "state": state["rng"]})
        self.clock.__dict__.update(self._resume["state"]["clock"])
        self.step_losses, self.tokens = list(state["losses"]), state["tokens"]
        self._seconds_before = state["seconds"]
        self.dataloader.start = state["step"]

    # --- where the template would do something else ---------------------------------------------

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)  # a plugin may put its own loader in place here
        self.dataloader = self._exact_steps(self.dataloader)
        self._replayed_per_step = sum(self.dataloader.batch_sizes[1:])

    def make_train_dataloader(self, **_kwargs: Any) -> None:
        """The template's loader would ignore the dataset's ``collate_fn`` in streams without task labels."""
        self.dataloader = self._exact_steps([self.adapted_dataset], [self.train_mb_size])

    def _exact_steps(self, datasets: Any, batch_sizes: Sequence[int] | None = None) -> ExactSteps:
        if isinstance(datasets, ExactSteps):
            return datasets
        if batch_sizes is None:
            datasets, batch_sizes = taken_from(datasets, self.train_mb_size)
        learner = self.learner
        return ExactSteps(datasets, batch_sizes, self.phases, learner.collate, learner.seed, self.running)

    def make_optimizer(self, **_kwargs: Any) -> None:
        """A new AdamW. The template's would take in frozen parameters, and fail with two parameter groups."""
        groups = [dict(group) for group in self.learner.strategy.trainable(self.learner.parts)]
        self._trained = [p for group in groups for p in group["params"]]
        self.optimized_param_id = check_trainable(self.model, self._trained)
        self.optimizer = make_adamw(groups, self.learner.train)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    # The template takes a batch for a list of tensors; ours is a mapping that answers to positions.

    def _unpack_minibatch(self) -> None:
        if self.device.type == "cuda":
            self.mbatch = self.mbatch.pin_memory().to(self.device, non_blocking=True)
        else:
            self.mbatch = self.mbatch.to(self.device)

    @property
    def mb_x(self) -> Any:
        return self.mbatch[0]

    @property
    def mb_y(self) -> Tensor:
        return self.mbatch[1]

    @property
    def mb_task_id(self) -> Tensor:
        return self.mbatch[-1]

    def forward(self) -> Any:
        return self.model(self.mb_x)


class MethodModel(nn.Module):
    """Backbone and reasoning as the one module that Avalanche sees; ``model(batch)`` is a ``Loss``."""

    backbone: nn.Module

    def __init__(self, parts: Any):
        super().__init__()
        self.backbone = parts.backbone.model
        self.reasoning = parts.reasoning
        self.parts = parts

    def forward(self, batch: Any) -> Any:
        return self.parts.reasoning.loss(self.parts, batch)

    def train(self, mode: bool = True) -> MethodModel:
        """Train mode only where something is trained: a frozen module keeps its dropout off."""
        _set_mode(self, mode, inherited=mode)
        return self


def _set_mode(module: nn.Module, mode: bool, inherited: bool) -> None:
    parameters = list(module.parameters())
    # A module without parameters (dropout, an activation) does as the module around it.
    module.training = (mode and any(p.requires_grad for p in parameters)) if parameters else inherited
    for child in module.children():
        _set_mode(child, mode, module.training)


class _NoLogger(BaseLogger):
    """Avalanche warns about an evaluator without loggers; numbers leave through on_step and TurnReport."""

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        pass

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        pass


def _device_of(parts: Any) -> torch.device:
    return next(parts.backbone.model.parameters()).device
