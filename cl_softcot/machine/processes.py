"""Several processes, the numbers of one: what happens under ``torchrun`` or ``accelerate launch``.

Every process goes through the same code in step and holds the same values; they differ in what they compute a share of:

* **Training.** All see the same global batch. Each computes the loss of its rows, divided by the tokens of the whole batch, and
  gradients are *summed*: the update is that of one process up to rounding.
* **Evaluation.** Batches of questions are dealt out and the answers handed round. Prompts are read in the same company however
  many processes there are; what is left over of several batches is written together, so that logits agree up to rounding.
* **Files, display, trackers** belong to the first process. What it reads or decides the others are told (``from_main``).

With ``train.sharding: full`` weights, gradients and optimiser states are split as well (``shard``). In one process every
function here does the obvious thing at no cost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cl_softcot.errors import StopRun, UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
R = TypeVar("R")

_BUCKET = 1 << 25  # numbers that are summed over the processes in one go
_PATIENCE = 60.0  # seconds that processes may be apart when one of them fails
COMMAND = "torchrun --nproc_per_node 2 -m cl_softcot.run EXPERIMENT.yaml"


@dataclass
class _World:
    rank: int = 0
    size: int = 1
    store: Any = None
    failures: int = 0


_world = _World()


class OutOfStep(UserError):
    """A process failed where the others did not: they wait for it for ever, so that all have to end."""

    exit_status = 1
    ends_all = True


def size() -> int:
    """How many processes work together."""
    return _world.size


def rank() -> int:
    """Which of them this is, from 0."""
    return _world.rank


def is_main() -> bool:
    """True in the first process, which alone writes files."""
    return _world.rank == 0


# --- beginning and end ------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether a launcher started this process as one of several (or as the only one).

    Raises:
        UserError: if it looks so, but the processes could not find each other.
    """
    given = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if os.environ.get(name)]
    if len(given) == 4:
        return True
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1") or "RANK" in given:
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in given]
        raise UserError(
            f"this looks like one of several processes ({', '.join(f'{n}={os.environ[n]}' for n in given)}), but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, so that they cannot find each other",
            fix=f"Start them with `{COMMAND}`, or unset WORLD_SIZE for one process.",
        )
    return False


@contextlib.contextmanager
def started() -> Iterator[None]:
    """The processes of a launch find each other; on the way out they part.

    GPUs talk over NCCL, CPUs over gloo. Process i of a machine takes GPU i.

    Raises:
        UserError: if a machine has fewer GPUs than processes, or the processes cannot find each other.
    """
    backend = "gloo"
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes"):
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"process {local} of this machine has no GPU: there are {gpus}",
                fix=f"Start as many processes as there are GPUs: --nproc_per_node {gpus}.",
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=60))
    except (dist.DistError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this launch did not find each other: {str(error).strip().splitlines()[0]}",
            fix=f"Start them all with `{COMMAND}` (several machines: --nnodes, --rdzv_endpoint).",
        ) from error
    _world.rank, _world.size, _world.failures = dist.get_rank(), dist.get_world_size(), 0
    _world.store = dist.PrefixStore("cl_softcot", dist.distributed_c10d._get_default_store())
    try:
        yield
    finally:
        _world.rank, _world.size, _world.store = 0, 1, None
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def failed_together(seconds: float | None = None) -> bool:
    """Called by a process that failed: whether all did, at the same place, so that they may go on together.

    Asked over the launch's key-value store, since in the middle of a collective the processes cannot talk otherwise.
    """
    if size() == 1:
        return True
    _world.failures += 1
    keys = [f"failure/{_world.failures}/{i}" for i in range(size())]
    _world.store.set(keys[rank()], "1")
    try:
        _world.store.wait(keys, timedelta(seconds=_PATIENCE if seconds is None else seconds))
    except (dist.DistError, RuntimeError):
        return False
    return True


# --- talking ----------------------------------------------------------------------------------------------------


def from_main(work: Callable[[], R]) -> R:
    """What ``work`` gives in the first process, in all of them; an error of it is raised in all of them too."""
    if size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    caught: BaseException | None = None
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:
            caught = error
            outcome[1] = error if isinstance(error, UserError | StopRun) else Told(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome, src=0)
    if caught is not None:
        raise caught
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


class Told(Exception):
    """An error of the first process, in the others."""


def gathered_from_all(value: T) -> list[T]:
    """Everybody's value, by rank."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def dealt(pieces: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """``work`` of every piece, in order: piece i is done by process i modulo their number, and all get everything.

    Tensors in what ``work`` gives should be on the CPU.
    """
    if size() == 1:
        return [work(piece) for piece in pieces]
    mine = {i: work(pieces[i]) for i in range(rank(), len(pieces), size())}
    found: dict[int, R] = {}
    for part in gathered_from_all(mine):
        found |= part
    return [found[i] for i in range(len(pieces))]


def require_same(what: str, value: str) -> None:
    """Stops all processes if a value differs between them.

    Raises:
        UserError: in all of them.
    """
    values = gathered_from_all(value)
    others = [i for i, v in enumerate(values) if v != values[0]]
    if others:
        raise UserError(
            f"{what} of process {others[0]} are not those of process 0",
            fix="All machines need the same files and the same versions of the packages.",
        )


def own_rows(n: int) -> slice:
    """This process's rows of a global batch of n.

    Raises:
        UserError: if there are fewer rows than processes.
    """
    if n < size():
        raise UserError(
            f"a global batch of {n} examples cannot be split over {size()} processes",
            fix="Raise train.global_batch_size, or start fewer processes.",
        )
    return slice(n * rank() // size(), n * (rank() + 1) // size())


@contextlib.contextmanager
def own_random_numbers(key: str) -> Iterator[None]:
    """Among several processes each draws numbers of its own inside (dropout), from the key and its rank.

    Outside all go on with the common ones, which a plug-in's memory depends on. One process just goes on.
    """
    if size() == 1:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    number = int.from_bytes(hashlib.sha256(f"{key}/{rank()}".encode()).digest()[:8], "big")
    python = random.getstate()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield
    random.setstate(python)


# --- gradients --------------------------------------------------------------------------------------------------


def sum_over_all(tensor: Tensor) -> Tensor:
    """The sum of everybody's tensor, without a gradient."""
    total = tensor.detach().clone()
    if size() > 1:
        dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sums the gradients over the processes, many in one go. A parameter without one anywhere stays without.

    Sharded parameters are left out: theirs are summed while they are computed.
    """
    if size() == 1:
        return
    mine = [p for p in parameters if not is_sharded(p)]
    if not mine:
        return
    somewhere = sum_over_all(torch.tensor([float(p.grad is not None) for p in mine], device=mine[0].device))
    used = [p for p, n in zip(mine, somewhere.tolist(), strict=True) if n]
    for p in used:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets(p.grad for p in used if p.grad is not None):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, together at most ``_BUCKET`` numbers (or a single larger one)."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = by_dtype.setdefault(tensor.dtype, [])
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
            yield bucket
            bucket = by_dtype[tensor.dtype] = []
        bucket.append(tensor)
    yield from by_dtype.values()


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scales the whole gradient to a norm of at most ``limit``; returns the norm that it had."""
    if not any(is_sharded(p) for p in parameters):
        return nn.utils.clip_grad_norm_(parameters, limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = [_local(g).float().square().sum() for g in gradients]
    zero = squares[0].new_zeros(())
    parts = sum((s for g, s in zip(gradients, squares, strict=True) if is_sharded(g)), zero)
    wholes = sum((s for g, s in zip(gradients, squares, strict=True) if not is_sharded(g)), zero)
    norm = (sum_over_all(parts) + wholes).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        _local(g).mul_(factor)
    return norm


# --- sharding ---------------------------------------------------------------------------------------------------


def shard(backbone: Any) -> None:
    """Splits a backbone over the processes, layer by layer (FSDP2: weights, gradients and optimiser states).

    * The decoder layers are a group each, what else is in the core (positions, final norm) another, and a head with weights of
      its own one more: they are called by themselves, at different times.
    * The input embedding stays whole in every process, and with it a head that is tied to it: it is read before the core runs
      and, where tied, after it. Its gradient is summed like any other.
    * Weights are kept in fp32 and gathered in the type that the backbone computes in. They stay gathered from the first
      forward pass of a step to the end of its backward pass: that costs their bytes once, and Coconut's many passes gather
      them once.

    In one process nothing is split.
    """
    if size() == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = backbone.compute_dtype != torch.float32
    policy = MixedPrecisionPolicy(backbone.compute_dtype, torch.float32) if half else MixedPrecisionPolicy()
    mesh = dist.init_device_mesh(backbone.device.type, (size(),))
    embedding = backbone.model.get_input_embeddings().weight
    head = backbone.model.get_output_embeddings()
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": False}
    for layer in backbone.layers:
        fully_shard(layer, **options)
    fully_shard(backbone.core, ignored_params={embedding}, **options)
    if head.weight is not embedding:
        fully_shard(head, **options)
    for module in _sharded_modules(backbone.model):
        module.set_gradient_divide_factor(1.0)  # sums, not means: the loss is divided already
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        # Through the cache an earlier pass is still to be gone back through when a later one is done: see ``reshard``.
        module.set_reshard_after_backward(False)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every process holds the whole model inside, so that each may call it as often as it needs: for evaluation."""
    modules = _sharded_modules(model)
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def _sharded_modules(model: nn.Module) -> list[Any]:
    if size() == 1:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Lets go of gathered weights, before the optimiser changes their shards."""
    for module in _sharded_modules(model):
        module.reshard()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """True for a tensor of which every process holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; if it is sharded all processes have to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_copy(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, copied to the CPU."""
    return _local(tensor.detach()).to("cpu", copy=True)


def kept_by_main(tensor: Tensor) -> Tensor:
    """All of a tensor, copied to the CPU, for the first process; the others get an empty one, but have to ask too."""
    full = whole(tensor.detach())
    return full.to("cpu", copy=True) if is_main() else torch.empty(0, dtype=full.dtype)


@torch.no_grad()
def put(into: Tensor, value: Tensor) -> None:
    """Copies a whole value into a tensor, sharded or not."""
    into.copy_(like(into, value))


@torch.no_grad()
def put_local(into: Tensor, value: Tensor) -> None:
    """Puts back what ``local_copy`` gave."""
    _local(into.detach()).copy_(value)


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole value, split as ``tensor`` is."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    return value


def tensors_from_main(tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The first process's tensors for all, sent one at a time when asked for: all have to ask in the same order."""
    if size() == 1:
        return tensors or {}
    described = from_main(lambda: {name: (tuple(t.shape), t.dtype) for name, t in (tensors or {}).items()})
    return _FromMain(described, tensors or {})


class _FromMain(Mapping):
    def __init__(self, described: Mapping[str, tuple[tuple[int, ...], torch.dtype]], tensors: Mapping[str, Tensor]):
        self._described, self._tensors = described, tensors

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self._described[name]
        tensor = self._tensors[name].contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # as bytes: gloo does not know every type
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)
