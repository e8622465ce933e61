"""The same sums in the same order on any machine of a kind, and memory that runs out with a word of advice."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cl_softcot.errors import UserError


def make_exact() -> None:
    """The same sums in the same order, however many run side by side, and in whatever environment.

    Without a GPU a run is one core; with one the cores are for whatever is not on the GPU.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch adds it at runtime; a debugging help that costs time
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        keep_freed_memory()


def keep_freed_memory(mapped: int = 1 << 30, at_the_end: int = 1 << 30) -> None:
    """Freed memory stays with the process: glibc would give every large tensor back to the system, which hands it out again page
    by page. Nothing where the C library is another one.

    Args:
        mapped: bytes from which on a block is the system's again as soon as it is freed.
        at_the_end: bytes that may be free behind all that is used.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, size in ((_M_MMAP_THRESHOLD, mapped), (_M_TRIM_THRESHOLD, at_the_end)):
            set_option(option, size)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def free_memory() -> None:
    """Gives back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turns running out of memory into an error that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = str(error).strip().splitlines()
        device = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        problem = f"{device} has not enough memory ({said[0] if said else 'no details'})"
    except RuntimeError as error:  # what torch's allocator for the CPU raises
        if "can't allocate memory" not in str(error):
            raise
        problem = f"this machine has not enough memory ({str(error).strip().splitlines()[0]})"
    else:
        return
    failed = UserError(problem, fix=_MEMORY_ADVICE)
    failed.exit_status = 1
    raise failed


_MEMORY_ADVICE = (
    "What is finished is kept; the same command goes on. Where memory goes, and what lowers it:\n"
    "  while learning   train.micro_batch_size=1 (same numbers), backbone.gradient_checkpointing=true (slower)\n"
    "  while answering  evaluate.batch_size, evaluate.max_new_tokens\n"
    "  frozen prompts   CL_SOFTCOT_PREFIX_MEMORY=off keeps none of their keys and values (same numbers, slower)\n"
    "  the weights      backbone.dtype=bfloat16; backbone.quantization=4bit where they are frozen or adapted by LoRA\n"
    "  all of them      several GPUs: torchrun, and train.sharding=full with full_finetune"
)
