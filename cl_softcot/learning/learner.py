"""A method learning turn after turn: checkpoints, resuming, and what happens when the loss diverges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_softcot.errors import UserError
from cl_softcot.learning.batches import Collate
from cl_softcot.learning.loop import MethodModel, TrainingLoop
from cl_softcot.learning.plugins import build_plugin, load_plugin, save_plugin
from cl_softcot.learning.snapshot import (
    START_OVER,
    LossDiverged,
    Snapshot,
    TurnReport,
    Under,
    identity_of_turn,
    load_weights,
    same_data,
    same_turn,
    seed_everything,
)
from cl_softcot.learning.stream import Stream, Turn, experiences_of
from cl_softcot.machine import processes

if TYPE_CHECKING:
    from cl_softcot.config.settings import TrainConfig
    from cl_softcot.reasoning.base import Parts
    from strategies.base import Strategy


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
        UserError: for a plugin that cannot work here, or a strategy that trains what it shares with others.
    """

    def __init__(
        self,
        parts: Parts,
        strategy: Strategy,
        train: TrainConfig,
        plugins: Sequence[Any] = (),
        seed: int = 0,
        on_step: Callable[[dict], None] | None = None,
    ):
        if not strategy.writes_weights and strategy.trained_own(parts):
            raise UserError(
                f"{type(strategy).__name__} trains the backbone's own weights, and says that it leaves them alone, so that they "
                "are shared with the base",
                fix="Say writes_weights = True in its class: then every run gets a copy.",
            )
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
            same_turn(resume["state"]["turn"], turn)
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
        if processes.size() > 1:
            processes.require_same("the weights after this turn", self._hash_of_weights())
        self._learned.append(identity_of_turn(turn))
        return training.report()

    def _hash_of_weights(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.strategy.tensors(self.parts).items()):
            digest.update(name.encode())
            if not processes.is_sharded(tensor):  # of a sharded one everybody has another part
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
        tensors = {name: processes.kept_by_main(tensor) for name, tensor in weights.items()}
        state: dict[str, Any] = {
            "learned": list(self._learned),
            "clock": dict(vars(self.training.clock)),
            "plugins": [],
            "turn": None,
        }
        for i, plugin in enumerate(self.plugins):
            saved = save_plugin(plugin)
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
            same_data(done, experiences)
        load_weights(self.strategy.tensors(self.parts), Under("weights/", tensors))
        if len(state["plugins"]) != len(self.plugins):
            raise UserError("the checkpoint was made with other plugins", fix=START_OVER)
        for i, plugin in enumerate(self.plugins):
            saved = {"state": state["plugins"][i], "tensors": Under(f"plugins/{i}/", tensors)}
            load_plugin(plugin, saved, experiences)
        self.training.clock.__dict__.update(state["clock"])
        self._learned = list(state["learned"])
        self._resume = {"tensors": tensors, "state": dict(state)} if state["turn"] is not None else None

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
        self._last_good = step, {name: processes.local_copy(tensor) for name, tensor in weights.items()}

    def diverged(self, turn: Turn, step: int, what: str, learning_rates: Sequence[float]) -> LossDiverged:
        """Puts the weights back to the last good state and returns the error to raise."""
        assert self._last_good is not None, "every turn begins with a state to go back to"
        since, weights = self._last_good
        processes.reshard(self.parts.backbone.model)
        for name, tensor in self.strategy.tensors(self.parts).items():
            processes.put_local(tensor, weights[name])
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(learning_rates))
        clip = self.train.gradient_clip
        error = LossDiverged(
            f"{what} is no longer a number; training stopped, and the weights are those after step {since} of this turn",
            where=f"turn {turn.index + 1} ({turn.name}), step {step + 1} of {self.train.steps}",
            fix=f"Lower the learning rate (now {rates}), or train.gradient_clip (now {'null' if clip is None else f'{clip:g}'}).",
        )
        error.turn, error.step, error.last_good_step = turn.index, step, since
        return error
