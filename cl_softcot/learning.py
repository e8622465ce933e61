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
  them (``parallel.py``). Plugins see the same batch, the same loss and the same gradient everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from cl_softcot import parallel
from cl_softcot.checkpoint import capture_rng, restore_rng
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.registry import find
from cl_softcot.stream import Stream, Turn, experiences_of, indices_to_rows, rows_to_indices

# Avalanche comes after stream.py, which prepares its import.
# isort: split
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import BalancedExemplarsBuffer, ReservoirSamplingBuffer
from avalanche.training.templates import SupervisedTemplate

Snapshot = dict[str, dict[str, Any]]
"""``{"tensors": {name: Tensor}, "state": JSON data}``: what ``checkpoint.save`` takes."""

LOSS_WINDOW = 10  # steps per entry of TurnReport.losses
HALF_SCALE = 4096.0  # fp16 ends at 6e-8: gradients of a loss per token would vanish on their way through the backbone
_START_OVER = "Start over with --restart."


class LossDiverged(UserError):
    """The loss or a gradient is no longer a number; training stopped before the step was taken.

    The trained weights are back at the last good state.

    Attributes:
        turn: index of the turn, from 0.
        step: the step that failed, from 0.
        last_good_step: how many steps of the turn the restored weights have seen (0 = as the turn began).
    """

    turn: int = -1
    step: int = -1
    last_good_step: int = 0


@dataclasses.dataclass(frozen=True)
class TurnReport:
    """What a turn took.

    Attributes:
        steps: optimiser steps.
        examples_seen: examples in all steps, replayed ones included.
        replayed: how many of them a plugin added from earlier turns.
        tokens: target tokens that the loss was taken over.
        losses: mean loss in nats per token of every ten steps.
        train_seconds: wall time, the part before an interruption included.
    """

    steps: int
    examples_seen: int
    replayed: int
    tokens: int
    losses: list[float]
    train_seconds: float


class Learner:
    """Trains one method, turn after turn.

    Build it when the parts are ready: after ``reasoning.build`` and ``strategy.prepare``.

        learner = Learner(parts, strategy, config.train, method.plugins, seed)
        stream = make_stream(tasks, learner.collate)
        for turn in strategy.plan(stream):
            report = strategy.learn(turn, learner.loop)

    Args:
        parts: backbone, assistant and reasoning.
        strategy: what learns; its ``trainable(parts)`` gives the optimiser's groups, its ``tensors(parts)``
            all that is trained.
        train: the ``train:`` section of the configuration.
        plugins: ``{name: replay, ...}`` or ``{name: package.module:Class, ...}`` each (see ``build_plugin``).
        seed: decides order, encoding and every random number of training.
        on_step: called after every step, before a checkpoint of it, with a dict of turn (index), task (name), step
            (from 1), steps, stage, loss (nats per token), learning_rate (of the first group), seconds (in this turn).
            May look at the weights, and has to leave everything as it was.

    Raises:
        UserError: for a plugin that cannot work here.
    """

    def __init__(
        self,
        parts: Any,
        strategy: Any,
        train: Any,
        plugins: Sequence[Any] = (),
        seed: int = 0,
        on_step: Callable[[dict], None] | None = None,
    ):
        self.parts = parts
        self.strategy = strategy
        self.train = train
        self.seed = seed
        self.on_step = on_step
        self.collate = Collate(parts, seed)
        self.plugins = [build_plugin(plugin, train.global_batch_size) for plugin in plugins]
        self.training = TrainingLoop(learner=self)
        self._learned: list[dict[str, Any]] = []  # the turns that are done
        self._registered = 0  # experiences whose examples the reasoning knows
        self._resume: Snapshot | None = None  # the unfinished turn that was loaded
        self._last_good: tuple[int, dict[str, Tensor]] | None = None  # steps done, and this process's part of the weights

    def loop(
        self,
        turn: Turn,
        resume: Snapshot | None = None,
        checkpoint: Callable[[Snapshot], None] | None = None,
    ) -> TurnReport:
        """One turn of training, or the rest of one.

        Args:
            turn: the turn to learn.
            resume: a snapshot to go on from; the same as calling ``load_state_dict`` first.
            checkpoint: called with a snapshot after every ``train.checkpoint_every_steps`` steps (never after
                the last).

        Raises:
            LossDiverged: if the loss stops being a number.
            UserError: if the snapshot is of another turn, or its data have changed.
        """
        if resume is not None:
            self.load_state_dict(resume, turn)
        resume, self._resume = self._resume, None
        if resume is not None:
            _same_turn(resume["state"]["turn"], turn)
        self._register(turn)
        seed_everything(f"{self.seed}/{turn.index}")
        training = self.training
        self._remember(self.resumed_steps(resume))
        training.begin_turn(turn, MethodModel(self.parts), resume, checkpoint)
        try:
            training.train(turn.experience, eval_streams=[])
        finally:
            training.model.eval()
            training.end_turn()
            self._last_good = None
        if parallel.size() > 1:
            parallel.require_same("the weights after this turn", self._hash_of_weights())
        self._learned.append(_identity(turn))
        return training.report()

    def _hash_of_weights(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.strategy.tensors(self.parts).items()):
            digest.update(name.encode())
            if not parallel.is_sharded(tensor):  # of a sharded one everybody has another part
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _register(self, turn: Turn) -> None:
        """Tells the reasoning which examples belong together, turn by turn, so that what it computes once for
        them has the same bits in a resumed run, which has not seen the earlier turns."""
        for experience in experiences_of(turn)[self._registered : turn.index + 1]:
            self.parts.reasoning.register(self.parts, experience.examples)
            self._registered += 1

    def state_dict(self) -> Snapshot:
        """All that the coming steps depend on: trained weights, plugin memories, and inside a turn also
        optimiser, random numbers and position. Tensors are copies.

        Of several processes all have to ask, and the first gets the tensors.
        """
        weights = {f"weights/{name}": tensor for name, tensor in self.strategy.tensors(self.parts).items()}
        tensors = {name: parallel.kept_by_main(tensor) for name, tensor in weights.items()}
        state: dict[str, Any] = {
            "learned": list(self._learned),
            "clock": dict(vars(self.training.clock)),
            "plugins": [],
            "turn": None,
        }
        for i, plugin in enumerate(self.plugins):
            saved = _save_plugin(plugin)
            state["plugins"].append(saved["state"])
            tensors |= {f"plugins/{i}/{name}": tensor for name, tensor in saved["tensors"].items()}
        if self.training.turn is not None:
            inside = self.training.position()
            state["turn"] = inside["state"]
            tensors |= inside["tensors"]
        return {"tensors": tensors, "state": state}

    def load_state_dict(self, snapshot: Mapping[str, Any], stream: Stream | Turn) -> None:
        """Puts everything back as ``state_dict`` found it. If that was inside a turn, ``loop`` goes on there.

        Tensors of others in the snapshot are left alone.

        Raises:
            UserError: if the snapshot is of another method or of other data, or a plugin could not be saved.
        """
        tensors, state = snapshot["tensors"], snapshot["state"]
        experiences = experiences_of(stream)
        for done in state["learned"]:
            _same_data(done, experiences)
        load_weights(self.strategy.tensors(self.parts), _Under("weights/", tensors))
        if len(state["plugins"]) != len(self.plugins):
            raise UserError("the checkpoint was made with other plugins", fix=_START_OVER)
        for i, plugin in enumerate(self.plugins):
            saved = {"state": state["plugins"][i], "tensors": _Under(f"plugins/{i}/", tensors)}
            _load_plugin(plugin, saved, experiences)
        vars(self.training.clock).update(state["clock"])
        self._learned = list(state["learned"])
        self._resume = {"tensors": tensors, "state": dict(state)} if state["turn"] is not None else None

    @property
    def resumes_at_step(self) -> int:
        """How many steps of the coming turn the loaded snapshot has; 0 if it was taken between turns."""
        return self.resumed_steps(self._resume)

    @staticmethod
    def resumed_steps(snapshot: Snapshot | None) -> int:
        """How many steps of its unfinished turn a snapshot has; 0 if it is of no turn."""
        inside = snapshot["state"]["turn"] if snapshot else None
        return inside["step"] if inside else 0

    def take_checkpoint(self, checkpoint: Callable[[Snapshot], None] | None) -> None:
        """Remembers this moment as the last good state, and hands it out."""
        self._remember(len(self.training.step_losses))
        if checkpoint is not None:
            checkpoint(self.state_dict())

    def _remember(self, step: int) -> None:
        weights = self.strategy.tensors(self.parts)
        self._last_good = step, {name: parallel.local_copy(tensor) for name, tensor in weights.items()}

    def diverged(self, turn: Turn, step: int, what: str, learning_rates: Sequence[float]) -> LossDiverged:
        """Puts the weights back to the last good state and returns the error to raise."""
        since, weights = self._last_good
        parallel.reshard(self.parts.backbone.model)
        for name, tensor in self.strategy.tensors(self.parts).items():
            parallel.put_local(tensor, weights[name])
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(learning_rates))
        clip = self.train.gradient_clip
        error = LossDiverged(
            f"{what} is no longer a number; training stopped, and the weights are those after step {since} of this turn",
            where=f"turn {turn.index + 1} ({turn.name}), step {step + 1} of {self.train.steps}",
            fix=f"Lower the learning rate (now {rates}), or train.gradient_clip (now {'null' if clip is None else f'{clip:g}'}).",
        )
        error.turn, error.step, error.last_good_step = turn.index, step, since
        return error


class TrainingLoop(SupervisedTemplate):
    """Avalanche's side of the learner: the template whose hooks the plugins use.

    What plugins find in it (they call it ``strategy``): ``mbatch`` is the global batch, ``mb_output`` its
    ``Loss``, ``optimized_param_id`` the trained parameters by name, ``model(batch)`` the ``Loss`` of a batch.
    ``Loss.per_example_B`` holds one loss sum per example, so that gradients can be taken example by example.
    """

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
            evaluator=EvaluationPlugin(loggers=[_NoLogger()] if parallel.is_main() else None),
        )

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
            parallel.reshard(self.model.backbone)
            parallel.sum_gradients(self._trained)
            self._unscale()
            self._after_backward(**kwargs)

            gradient_norm = parallel.clip_gradients(self._trained, self.learner.train.gradient_clip or math.inf)
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
        with parallel.own_random_numbers(f"{self.learner.seed}/{self.turn.index}/{self.step}"):
            for micro_batch in micro_batches:
                output = self._forward(micro_batch)
                part = mean_over_tokens(output.loss_sum, n_tokens)
                if micro_batch is not micro_batches[-1]:
                    (part * self._scale).backward()
                    part, output = part.detach(), _detached(output)
                outputs.append(output)
                loss = loss + part
        merged = merge_losses(outputs)
        if parallel.size() > 1:
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
            passes = parallel.gathered_from_all(self._passes)
            if len(set(passes)) > 1:
                raise UserError(
                    f"rows of one batch need different numbers of passes ({min(passes)} and {max(passes)}), which "
                    "processes that share their weights cannot do",
                    fix="Give all rows equally many thoughts (no drawn stages, thoughts padded), or train.sharding: none.",
                )
        return output

    def _of_all_processes(self, own: Any, loss: Tensor) -> tuple[Any, Tensor]:
        """The ``Loss`` of the whole global batch: values of all, the graph of this process's rows."""
        size, rows = len(self.mbatch), parallel.own_rows(len(self.mbatch))
        per_example_B = own.per_example_B.new_zeros(size)
        per_example_B[rows] = own.per_example_B.detach()
        numbers = torch.stack([t.detach().double().sum() for t in (own.loss_sum, loss, loss.new_tensor(own.n_tokens))])
        loss_sum, value, n_tokens = parallel.sum_over_all(numbers)
        merged = dataclasses.replace(
            own,
            loss_sum=loss_sum.to(own.loss_sum.dtype),
            n_tokens=int(n_tokens),
            per_example_B=parallel.sum_over_all(per_example_B),
        )
        return merged, loss + (value.to(loss.dtype) - loss.detach())

    def _count_penalties_once(self, without: Tensor) -> None:
        """Gradients of the processes are summed, and a penalty's is the same in all."""
        if parallel.size() > 1 and self.loss is not without:
            penalty = self.loss - without
            self.loss = without + penalty.detach() + (penalty - penalty.detach()) / parallel.size()

    def _micro_batches(self) -> list[Any]:
        """This process's rows of the global batch, ``train.micro_batch_size`` at a time."""
        size, rows = self.learner.train.micro_batch_size, parallel.own_rows(len(self.mbatch))
        mine = self.mbatch if parallel.size() == 1 else self.mbatch.rows(rows)
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
            raise self.learner.diverged(self.turn, self.step, what, rates)
        return number

    def _count_step(self, loss: float) -> None:
        self.step_losses.append(loss)
        self.tokens += self.mb_output.n_tokens
        if self.learner.on_step is not None:
            began = time.perf_counter()
            self.learner.on_step(
                {
                    "turn": self.turn.index,
                    "task": self.turn.name,
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

    def begin_turn(self, turn: Turn, model: nn.Module, resume: Snapshot | None, checkpoint: Any) -> None:
        """Sets the turn that ``train`` is about to run."""
        steps, reasoning = self.learner.train.steps, self.learner.parts.reasoning
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

    def _watch_passes(self, model: nn.Module) -> None:
        self._passes, self._counts_passes = 0, any(parallel.is_sharded(p) for p in model.backbone.parameters())
        if self._counts_passes and not self._watched:
            self._watched = True

            def count(*_: Any) -> None:
                self._passes += 1

            self.learner.parts.backbone.core.register_forward_pre_hook(count)

    def _refuse_uneven_shares(self) -> None:
        """Processes that share weights gather them for every micro-batch, so that all need equally many."""
        batch, n = self.learner.train.global_batch_size, parallel.size()
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
        for name, value in _leaves(self.optimizer.state_dict()["state"]):
            if torch.is_tensor(value):
                tensors[f"optimizer/{name}"] = parallel.kept_by_main(value)
            else:
                numbers[name] = value
        state = {
            **_identity(self.turn),
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
        for name, value in _Under("optimizer/", tensors).items():
            parameter = parameters[int(name.split("/")[0])]
            value = parallel.like(parameter, value) if value.shape == parameter.shape else value
            _put_leaf(optimizer["state"], name, value.clone())
        for name, number in state.get("optimizer", {}).items():
            _put_leaf(optimizer["state"], name, number)
        self.optimizer.load_state_dict(optimizer)
        restore_rng({"tensors": _Under("rng/", tensors), "state": state["rng"]})
        vars(self.clock).update(self._resume["state"]["clock"])
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
            datasets, batch_sizes = _taken_from(datasets, self.train_mb_size)
        learner = self.learner
        return ExactSteps(datasets, batch_sizes, self.phases, learner.collate, learner.seed, self.turn)

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


class Collate:
    """Rows of the stream -> batch, encoded for the stage that the turn has reached, replayed rows too."""

    def __init__(self, parts: Any, seed: int):
        self.parts = parts
        self.seed = seed
        self.phase: Any = None
        self._moment = (0, 0)

    def set_moment(self, turn: int, step: int, phase: Any) -> None:
        """Says for which step the next batch is."""
        self._moment, self.phase = (turn, step), phase

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        reasoning, text = self.parts.reasoning, self.parts.backbone.text
        encoded = []
        for position, row in enumerate(rows):
            rng = random.Random("/".join(map(str, (self.seed, *self._moment, position))))
            one = reasoning.encode(text, row["example"], self.phase, rng)
            encoded.append(dataclasses.replace(one, task_id=int(row["targets_task_labels"])))
        return reasoning.collate(encoded)


class ExactSteps:
    """(step, phase, batch) for every step of a turn, each a pure function of seed, turn and step.

    A step takes ``batch_sizes[i]`` rows from ``datasets[i]``, which is gone through in a new order each time
    it is used up, so that no batch is ever short.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        batch_sizes: Sequence[int],
        phases: Sequence[Any],
        collate: Collate,
        seed: int,
        turn: Turn,
    ):
        self.datasets, self.batch_sizes = list(datasets), list(batch_sizes)
        self.phase_of_step = [phase for phase in phases for _ in range(phase.steps)]
        self.collate, self.seed, self.turn = collate, seed, turn
        self.start = 0

    @property
    def steps(self) -> int:
        return len(self.phase_of_step)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        for step in range(self.start, self.steps):
            phase = self.phase_of_step[step]
            self.collate.set_moment(self.turn.index, step, phase)
            yield step, phase, self.collate(self.rows(step))

    def begins(self, step: int, what: str) -> bool:
        """Whether a ``stage`` of the curriculum, or an ``epoch`` of the turn's own data, begins with this step."""
        if what == "stage":
            return self.phase_of_step[step] is not self.phase_of_step[step - 1]
        if what == "epoch":
            size, n = self.batch_sizes[0], len(self.datasets[0])
            return step * size // n > (step - 1) * size // n
        return step == 0

    def rows(self, step: int) -> list[dict]:
        """The rows of a step."""
        rows = []
        for source, (dataset, size) in enumerate(zip(self.datasets, self.batch_sizes, strict=True)):
            for position in range(step * size, (step + 1) * size):
                epoch, offset = divmod(position, len(dataset))
                order = _order(len(dataset), f"{self.seed}/{self.turn.index}/{source}/{epoch}")
                rows.append(dataset[order[offset]])
        return rows


@lru_cache(maxsize=16)
def _order(n: int, key: str) -> tuple[int, ...]:
    order = list(range(n))
    random.Random(key).shuffle(order)
    return tuple(order)


def _taken_from(loader: Any, global_batch_size: int) -> tuple[list[Any], list[int]]:
    """Datasets and batch sizes of a loader that a plugin put in place of ours."""
    if not isinstance(loader, MultiDatasetDataLoader):
        raise UserError(
            f"a plugin replaced the data loader by {type(loader).__name__}, which does not say what a step is made of",
            fix="Use a plugin whose loader is one of Avalanche's, or none.",
        )
    if sum(loader.batch_sizes) != global_batch_size:
        raise UserError(
            f"a plugin makes batches of {' + '.join(map(str, loader.batch_sizes))} examples where "
            f"train.global_batch_size is {global_batch_size}: budgets would no longer be equal",
            fix="Set its batch_size and batch_size_mem so that they add up to the global batch size.",
        )
    return loader.datasets, loader.batch_sizes


class _NoLogger(BaseLogger):
    """Avalanche warns about an evaluator without loggers; numbers leave through on_step and TurnReport."""

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        pass

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        pass


# --- arithmetic ------------------------------------------------------------------------------------


def mean_over_tokens(loss_sum: Tensor, n_tokens: int | Tensor) -> Tensor:
    """Nats per token. The only place where a loss is divided: by the tokens of all that it is the loss of."""
    return loss_sum / n_tokens


def labelled_tokens(batch: Mapping[str, Any]) -> int:
    """How many tokens of the batch carry a loss.

    Raises:
        UserError: if none does.
    """
    n_tokens = int((batch["labels"] != -100).sum())
    if n_tokens == 0:
        raise UserError("no token of this batch carries a loss", fix="Check that the examples have answers.")
    return n_tokens


def merge_losses(losses: Sequence[Any]) -> Any:
    """The ``Loss`` of a global batch from those of its micro-batches."""
    if len(losses) == 1:
        return losses[0]
    return dataclasses.replace(
        losses[0],
        loss_sum=sum(loss.loss_sum for loss in losses),
        n_tokens=sum(int(loss.n_tokens) for loss in losses),
        per_example_B=torch.cat([loss.per_example_B for loss in losses]),
    )


def _detached(loss: Any) -> Any:
    return dataclasses.replace(loss, loss_sum=loss.loss_sum.detach(), per_example_B=loss.per_example_B.detach())


def learning_rate_factor(step: int, steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Linear warm-up, plateau, linear decay over one turn, as a factor of the learning rate.

    Neither end reaches zero: the first step has 1/warm-up steps, the last 1/decay steps.
    """
    warmup = (step + 1) / max(1.0, warmup_fraction * steps)
    decay = (steps - step) / max(1.0, decay_fraction * steps)
    return min(1.0, warmup, decay)


def seed_everything(key: str) -> None:
    """Seeds torch's, NumPy's and Python's global generators from a text."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def load_weights(into: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies weights into the tensors of the same names.

    Raises:
        UserError: unless names and shapes are the same.
    """
    wrong = sorted(into.keys() ^ weights.keys())
    if not wrong:
        for name, tensor in into.items():
            value = weights[name]  # once: it may come from another process
            if value.shape != tensor.shape:
                wrong = [name]
                break
            parallel.put(tensor, value)
    if wrong:
        raise UserError(f"the checkpoint is of another method: '{wrong[0]}' does not fit", fix=_START_OVER)


def make_adamw(groups: list[dict[str, Any]], train: Any) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) as ``train.optimizer`` says; weight decay is in the groups.

    Raises:
        UserError: if the 8-bit one cannot be had.
    """
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=tuple(train.betas), weight_decay=0.0, fused=_can_fuse(groups))
    fix = "pip install 'cl-softcot[quantization]', or set train.optimizer: adamw."
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"train.optimizer: adamw_8bit needs the package bitsandbytes ({error})", fix=fix) from None
    return AdamW8bit(groups, betas=tuple(train.betas), weight_decay=0.0)


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """One kernel for all of AdamW's arithmetic; a split weight is no plain tensor."""
    return all(p.is_floating_point() and not parallel.is_sharded(p) for group in groups for p in group["params"])


def _leaves(state: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in an optimiser's state as ``parameter/key``, or ``parameter/key/inner key``."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def _put_leaf(state: dict[Any, Any], name: str, value: Any) -> None:
    number, *keys, last = name.split("/")
    inner = state.setdefault(int(number), {})
    for key in keys:
        inner = inner.setdefault(key, {})
    inner[last] = value


def check_trainable(model: nn.Module, trained: Sequence[Tensor]) -> dict[str, Tensor]:
    """The trained parameters by name; what is trained and what requires a gradient must be the same.

    Raises:
        ValueError: if not. Both ways round it is a silent mistake: a frozen weight that moves with weight
            decay, or a gradient that is computed, never used and never cleared.
    """
    if not trained:
        raise ValueError("this strategy trains nothing: it has no turns to learn")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    given = {id(p) for p in trained}
    frozen = sum(not p.requires_grad for p in trained)
    forgotten = [name for name, p in named.items() if id(p) not in given]
    if frozen or forgotten:
        raise ValueError(
            f"trainable() must give exactly the parameters that require a gradient: {frozen} of those given "
            f"do not, and these are left out: {forgotten[:5]}"
        )
    return named


# --- plugins ---------------------------------------------------------------------------------------


class Replay(ReplayPlugin, supports_distributed=True):
    """Avalanche's replay, without its call of a deprecated function, which warns the user and changes the
    warning filters of the whole process."""

    def after_training_exp(self, strategy: Any, **_kwargs: Any) -> None:
        self.storage_policy.post_adapt(strategy, strategy.experience)


PLUGINS = {"replay": Replay}
"""Avalanche plugins with a short name."""

_INTEGER_TARGETS = "it takes the targets for class numbers, and a batch of text has none"
UNUSABLE_PLUGINS = {
    "LwFPlugin": _INTEGER_TARGETS,
    "MASPlugin": _INTEGER_TARGETS,
    "GEMPlugin": _INTEGER_TARGETS,
    "GSS_greedyPlugin": _INTEGER_TARGETS,
    "MIRPlugin": _INTEGER_TARGETS,
    "SynapticIntelligencePlugin": "on a CPU it does nothing (its old weights are views of the live ones), "
    "and it fails where weights are frozen",
}


def build_plugin(config: Any, global_batch_size: int) -> Any:
    """An Avalanche plugin from one entry of ``plugins:``.

    ``{name: replay, mem_size: 200, batch_size_mem: 16}`` is Avalanche's replay: from the second turn on,
    ``batch_size_mem`` places of every global batch (half of it by default) are taken by examples of earlier
    turns. The batch keeps its size and the turn its number of steps, so a method with replay has the same
    budget and sees that many fewer new examples.
    ``{name: package.module:Class, ...}`` is any other plugin, with its own arguments.

    Raises:
        UserError: for an unknown plugin, wrong arguments, or one that cannot work on text.
    """
    settings = dict(config) if isinstance(config, Mapping) else config.model_dump()
    name = settings.pop("name")
    where = f"plugin '{name}'"
    cls = find("plugin", name)
    cls = Replay if cls is ReplayPlugin else cls
    if issubclass(cls, ReplayPlugin):
        settings = _replay_settings(settings, global_batch_size, where)
    if cls.__name__ in UNUSABLE_PLUGINS:
        raise UserError(f"cannot be used here: {UNUSABLE_PLUGINS[cls.__name__]}", where=where)
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = [p.name for p in parameters]
    for key in settings:
        if key not in known:
            raise UserError(f"has no setting '{key}'{did_you_mean(key, known)}", where=where)
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in settings]
    if missing:
        raise UserError(f"needs the setting '{missing[0]}'", where=where)
    return cls(**settings)


def _replay_settings(settings: dict[str, Any], global_batch_size: int, where: str) -> dict[str, Any]:
    memory = settings.get("batch_size_mem")
    memory = global_batch_size // 2 if memory is None else memory
    current = settings.get("batch_size")
    current = global_batch_size - memory if current is None else current
    if memory < 1 or current < 1 or memory + current != global_batch_size:
        raise UserError(
            f"takes {current} new and {memory} replayed examples a step where train.global_batch_size is {global_batch_size}",
            where=where,
            fix=f"Set batch_size_mem between 1 and {global_batch_size - 1} and leave batch_size out.",
        )
    return {**settings, "batch_size": current, "batch_size_mem": memory}


def _save_plugin(plugin: Any) -> Snapshot:
    """A plugin's memory: replay buffers as indices, others by ``state_dict`` or their plain attributes."""
    name = type(plugin).__name__
    buffers = _replay_buffers(plugin)
    if buffers is not None:
        return {
            "state": {
                "plugin": name,
                "buffers": {key: rows_to_indices(b.buffer) for key, b in buffers.items()},
                "max_sizes": {key: b.max_size for key, b in buffers.items()},
                "experiences": getattr(plugin.storage_policy, "_num_exps", None),
            },
            "tensors": {f"weights/{key}": b._buffer_weights.clone() for key, b in buffers.items()},
        }
    if hasattr(plugin, "state_dict") and hasattr(plugin, "load_state_dict"):
        saved = plugin.state_dict()
        return {"state": {"plugin": name, **saved["state"]}, "tensors": dict(saved["tensors"])}
    attributes = vars(plugin)
    if all(value is None or isinstance(value, bool | int | float | str) for value in attributes.values()):
        return {"state": {"plugin": name, "attributes": dict(attributes)}, "tensors": {}}
    return {"state": {"plugin": name, "not_saved": True}, "tensors": {}}


def _load_plugin(plugin: Any, saved: Snapshot, experiences: Sequence[Any]) -> None:
    state, name = saved["state"], type(plugin).__name__
    if state["plugin"] != name:
        raise UserError(f"the checkpoint was made with the plugin {state['plugin']}, not {name}", fix=_START_OVER)
    if state.get("not_saved"):
        raise UserError(f"what the plugin {name} remembers cannot be kept in a checkpoint", fix=_START_OVER)
    if "buffers" in state:
        _load_buffers(plugin.storage_policy, saved, experiences)
    elif "attributes" in state:
        vars(plugin).update(state["attributes"])
    else:
        plugin.load_state_dict(saved)


def _replay_buffers(plugin: Any) -> dict[str, ReservoirSamplingBuffer] | None:
    """The reservoirs that a plugin keeps examples in, by group ('' for a single one).

    None if it has none, or keeps examples in another way.
    """
    policy = getattr(plugin, "storage_policy", None)
    if type(policy) is ReservoirSamplingBuffer:
        return {"": policy}
    if isinstance(policy, BalancedExemplarsBuffer):
        groups = {str(key): buffer for key, buffer in policy.buffer_groups.items()}
        if all(type(buffer) is ReservoirSamplingBuffer for buffer in groups.values()):
            return groups
    return None


def _load_buffers(policy: Any, saved: Snapshot, experiences: Sequence[Any]) -> None:
    reservoirs = {}
    for key, indices in saved["state"]["buffers"].items():
        reservoir = policy if key == "" else ReservoirSamplingBuffer(saved["state"]["max_sizes"][key])
        if indices:
            reservoir.buffer = indices_to_rows(experiences, indices)
        reservoir._buffer_weights = saved["tensors"][f"weights/{key}"].clone()
        reservoirs[key] = reservoir
    if "" not in reservoirs:
        policy.buffer_groups = {int(key): reservoir for key, reservoir in reservoirs.items()}
    if saved["state"]["experiences"] is not None:
        policy._num_exps = saved["state"]["experiences"]


# --- identity --------------------------------------------------------------------------------------


def _identity(turn: Turn) -> dict[str, Any]:
    return {"index": turn.index, "name": turn.name, "data": turn.experience.fingerprint}


def _same_turn(saved: Mapping[str, Any], turn: Turn) -> None:
    if (saved["index"], saved["name"]) != (turn.index, turn.name):
        raise UserError(
            f"the checkpoint is of turn {saved['index'] + 1} ({saved['name']}), not of turn {turn.index + 1} ({turn.name})",
            fix=_START_OVER,
        )
    _same_data(saved, experiences_of(turn))


def _same_data(saved: Mapping[str, Any], experiences: Sequence[Any]) -> None:
    index = saved["index"]
    if index >= len(experiences) or experiences[index].fingerprint != saved["data"]:
        raise UserError(
            f"the training data of turn {index + 1} ({saved['name']}) are not those of the checkpoint",
            fix=_START_OVER,
        )


class _Under(Mapping):
    """The tensors whose names begin with a prefix, without it. Looked up when asked for: they may be many and far away."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]):
        self._prefix, self._tensors = prefix, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _device_of(parts: Any) -> torch.device:
    return next(parts.backbone.model.parameters()).device
