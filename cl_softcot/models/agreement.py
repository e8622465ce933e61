"""Whether a model computes the library's numbers when it is run as it is run here: asked once, when it is loaded.

Experiments give a model's core embeddings, positions and a cache, over rows with padding in front, and apply its head by
themselves. Not every kind of model bears that: a recurrent state reads the padding, a head may be more than one map, positions
may begin elsewhere. No list says which kinds do; a few random tokens do::

    library    model(input_ids)                                     t0 t1 t2 ... t15
    here       the same in one piece                                t0 t1 t2 ... t15
               in pieces with a cache, beside a padded row          t0 ... t8 | t9 | t10 ... t15
                                                                    .  .  .  . t0 | ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_softcot.errors import UserError
from cl_softcot.models.head import forget_packed
from cl_softcot.models.running import forward, new_state

if TYPE_CHECKING:
    from cl_softcot.models.language_model import LanguageModel

TOKENS = 16
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2  # of the largest distance of a logit from their mean
# In half precision an expert's near tie falls now one way, now the other, and one token differs by itself.
_TOKENS_APART = 1 / 4
_FIX = "take a decoder with attention in every layer, such as a GPT-2, Llama, Mistral, Qwen, Gemma, OLMo or Phi"


@contextlib.contextmanager
def kind_named(name: str, kind: str) -> Iterator[None]:
    """What goes wrong inside of a model of some kind, as a UserError that names the kind."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        fix = "set dtype: bfloat16, quantization: 4bit or device_map: auto"
        raise UserError(f"the model {name!r} does not fit on the GPU", fix=fix) from error
    except Exception as error:  # of any kind: it is the library's code, or the model's own
        said = (str(error).strip() or "no reason was given").splitlines()[0]
        raise UserError(
            f"{name!r} is a model of a kind ({kind}) that cannot be run here: {type(error).__name__}: {said}", fix=_FIX
        ) from error


@torch.no_grad()  # not inference mode: what a model keeps of a call must be fit for training
def check_agreement(backbone: LanguageModel) -> None:
    """Compares logits with the library's own plain forward; leaves the model and all random numbers as they are.

    Raises:
        UserError: they differ, or the model cannot be run in this way.
    """
    name, kind = backbone.name, backbone.config.model_type
    with kind_named(name, kind), _undisturbed(backbone):
        ids_T = _random_ids(backbone)
        expected_TV = _plain(backbone, ids_T)
        if expected_TV.isnan().any():
            raise UserError(
                f"the logits of {name!r} are no numbers (NaN), in the library's own forward too",
                fix="set dtype: bfloat16" if backbone.compute_dtype == torch.float16 else "fetch the model again",
            )
        allowed = _tolerance(backbone)
        for way, found_TV in _ways(backbone, ids_T):
            difference = _difference(found_TV, expected_TV[: len(found_TV)], 0.0 if allowed < HALF_TOLERANCE else _TOKENS_APART)
            if not difference <= allowed:
                raise UserError(
                    f"{name!r} is a model of a kind ({kind}) that is computed wrongly here: {way} its logits differ from the "
                    f"library's own by {difference:.2%} of their range, and {allowed:.2%} is allowed",
                    fix=_FIX,
                )


def _ways(backbone: LanguageModel, ids_T: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Logits of the tokens, or of the first of them, as they are computed here."""
    state = new_state(backbone, 1)
    yield "in one piece", backbone.logits(forward(backbone, state, backbone.embed(ids_T[None])))[0]
    whole_TV, padded_TV = _in_pieces(backbone, ids_T)
    yield "in pieces, with a cache,", whole_TV
    yield "behind padding", padded_TV


def _in_pieces(backbone: LanguageModel, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two rows that are read together: all tokens, and the first of them behind padding."""
    T = len(ids_T)
    padding = T // 3
    mask_2T = torch.ones(2, T, dtype=torch.bool, device=ids_T.device)
    mask_2T[1, :padding] = False
    ids_2T = torch.stack([ids_T, torch.cat([torch.full_like(ids_T[:padding], backbone.pad_id), ids_T[: T - padding]])])
    state, found, order_2 = new_state(backbone, 2, room=T), [], torch.tensor([1, 0], device=ids_T.device)
    cut = (T + padding) // 2
    for a, b in ((0, cut), (cut, cut + 1), (cut + 1, T)):
        if a < b:
            found.append(backbone.logits(forward(backbone, state, backbone.embed(ids_2T[:, a:b]), mask_2T[:, a:b])))
            state.keep(order_2)  # rows are dropped while answers are written: here they change places
            ids_2T, mask_2T = ids_2T[order_2], mask_2T[order_2]
    swapped = [piece[order_2] if i % 2 else piece for i, piece in enumerate(found)]
    logits_2TV = torch.cat(swapped, 1)
    return logits_2TV[0], logits_2TV[1, padding:]


def _plain(backbone: LanguageModel, ids_T: Tensor) -> Tensor:
    """Logits [T, V] of the library's own forward."""
    logits_1TV = backbone.model(input_ids=ids_T[None], use_cache=False).logits
    return logits_1TV[0, :, : backbone.vocab_size].to(backbone.device)


def _random_ids(backbone: LanguageModel) -> Tensor:
    """Always the same for a vocabulary, or the check would fail now and then; none of them special."""
    special = {*backbone.tokenizer.all_special_ids, *backbone.special.values(), *backbone.text.end_ids, backbone.pad_id}
    drawn = torch.randint(backbone.vocab_size, (8 * TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ordinary = [i for i in drawn if i not in special] or drawn
    return torch.tensor(ordinary[: min(TOKENS, backbone.max_length)], device=backbone.device)


def _tolerance(backbone: LanguageModel) -> float:
    exact = torch.get_float32_matmul_precision() == "highest"
    return TOLERANCE if backbone.compute_dtype in (torch.float32, torch.float64) and exact else HALF_TOLERANCE


def _difference(found_TV: Tensor, expected_TV: Tensor, but_for: float) -> float:
    """The largest difference of two logits, or how far what one takes for likeliest is from being so for the other: as a share of
    the largest distance of a logit from their mean. Infinite where the shapes are not the same or numbers are missing.

    Args:
        but_for: share of the tokens, those that differ most, that are left out.
    """
    if found_TV.shape != expected_TV.shape or found_TV.isnan().any():
        return float("inf")
    found_TV, expected_TV = found_TV.double(), expected_TV.double()
    there_TV = expected_TV.isfinite()
    some_TV = expected_TV.where(there_TV, expected_TV[there_TV].mean())
    scale = (some_TV - some_TV.mean(-1, keepdim=True)).abs().max()
    apart_T = (found_TV - expected_TV).where(found_TV != expected_TV, 0.0).abs().amax(-1)
    top_T1 = found_TV.argmax(-1, keepdim=True)
    behind_T = expected_TV.amax(-1) - expected_TV.gather(-1, top_T1)[:, 0]
    difference_T = (torch.maximum(apart_T, behind_T) / scale.clamp_min(1e-30)).sort().values
    return difference_T[len(difference_T) - 1 - int(but_for * len(difference_T))].item()


@contextlib.contextmanager
def _undisturbed(backbone: LanguageModel) -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been computed, and nothing of it is kept."""
    cuda = [p.device for p in backbone.model.parameters() if p.device.type == "cuda"]
    devices = sorted({device.index or 0 for device in cuda})
    rounds = torch.backends.cudnn.allow_tf32  # convolutions, to TF32, where single steps of them do not
    try:
        if cuda and rounds:
            torch.backends.cudnn.allow_tf32 = False
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        if cuda and rounds:
            torch.backends.cudnn.allow_tf32 = True
        forget_packed(backbone.model.get_output_embeddings().weight)
