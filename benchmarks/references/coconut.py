"""Coconut (arXiv 2412.06769), plainly: k thoughts are k + 1 passes, and each thought is the hidden state of the place before it.

As in the official code, the thoughts of all rows stand in the same columns, and their number is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.references.sequences import left_padded, mean_loss, sequences_of, until_end

# --------------------------------------------------------------------------------- the structure of the published code


def published_loss(model: Any, batch: Any, latent_id: int) -> Tensor:
    """Mean cross-entropy. After every pass the inputs are rebuilt from a list of single places, the cache is cut out anew, and
    logits are made of the whole vocabulary at every place.
    """
    rows = sequences_of(batch)
    logits_BTV, _ = _published_passes(model, rows.ids_BT, rows.mask_BT, rows.positions_BT, latent_id)
    return mean_loss(logits_BTV, rows.labels_BT)


@torch.no_grad()
def published_answers(
    model: Any, prompts: Sequence[Sequence[int]], latent_id: int, end_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers, one prompt after the other; every token is another pass over all that stands before it.

    Unlike the official code it compares the first written token with the end of text, too.
    """
    return [_published_answer(model, prompt, latent_id, end_ids, max_new_tokens) for prompt in prompts]


def _published_answer(
    model: Any, prompt: Sequence[int], latent_id: int, end_ids: Sequence[int], max_new_tokens: int
) -> list[int]:
    ids_1T = torch.tensor([list(prompt)], device=model.device)
    mask_1T = torch.ones_like(ids_1T, dtype=torch.bool)
    positions_1T = torch.arange(ids_1T.shape[1], device=model.device)[None]
    logits_1TV, inputs_1TD = _published_passes(model, ids_1T, mask_1T, positions_1T, latent_id)
    written = [int(logits_1TV[0, -1].argmax())]
    while written[-1] not in end_ids and len(written) < max_new_tokens:
        new_11D = model.get_input_embeddings()(torch.tensor([[written[-1]]], device=model.device))
        inputs_1TD = torch.cat([inputs_1TD, new_11D], 1)
        written.append(int(model(inputs_embeds=inputs_1TD).logits[0, -1].argmax()))
    return until_end(written, end_ids)


def _published_passes(model: Any, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, latent_id: int) -> tuple[Tensor, Tensor]:
    """Logits at every place [B, T, V], and the inputs with all thoughts in them [B, T, D]."""
    B, T = ids_BT.shape
    latents = [[t for t in range(T) if ids_BT[b, t] == latent_id and mask_BT[b, t]] for b in range(B)]
    if any(columns != latents[0] for columns in latents):
        raise ValueError("the published code needs the thoughts of all rows in the same columns")
    inputs_BTD = model.get_input_embeddings()(ids_BT)
    logits, cache, start = [], None, 0
    for end in [*latents[0], T]:
        output = model(
            inputs_embeds=inputs_BTD[:, start:end],
            attention_mask=mask_BT[:, :end].long(),
            position_ids=positions_BT[:, start:end],
            past_key_values=_cut_out(cache, start),
            output_hidden_states=True,
            use_cache=True,
        )
        logits.append(output.logits)
        cache = output.past_key_values
        if end < T:
            hidden_BD = output.hidden_states[-1][:, -1]  # of the place before the thought
            places = [[inputs_BTD[b, t] for t in range(T)] for b in range(B)]
            for b in range(B):
                places[b][end] = hidden_BD[b]
            inputs_BTD = torch.stack([torch.stack(row) for row in places])
        start = end
    return torch.cat(logits, 1), inputs_BTD


def _cut_out(cache: Any, length: int) -> DynamicCache | None:
    """A new cache of the first columns of every layer."""
    if cache is None:
        return None
    return DynamicCache([(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers])


# ------------------------------------------------------------------------------------------- with a cache, and batched


def cached_loss(model: Any, batch: Any, latent_id: int) -> Tensor:
    """Mean cross-entropy: one cache, thoughts placed for all rows at once; logits of all places in one product."""
    rows = sequences_of(batch)
    hidden_BTD, _ = _cached_passes(model, rows.ids_BT, rows.mask_BT, rows.positions_BT, latent_id)
    return mean_loss(model.get_output_embeddings()(hidden_BTD), rows.labels_BT)


@torch.no_grad()
def cached_answers(
    model: Any, prompts: Sequence[Sequence[int]], latent_id: int, end_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers to all prompts side by side, until the last one has ended."""
    ids_BT, mask_BT = left_padded(prompts, model.device)
    positions_BT = (mask_BT.long().cumsum(1) - 1).clamp_min(0)
    hidden_BTD, cache = _cached_passes(model, ids_BT, mask_BT, positions_BT, latent_id)
    logits_BTV = model.get_output_embeddings()(hidden_BTD)
    return continue_all(model, cache, mask_BT, logits_BTV[:, -1], end_ids, max_new_tokens)


def _cached_passes(
    model: Any, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, latent_id: int
) -> tuple[Tensor, DynamicCache]:
    """Hidden states at every place [B, T, D], after the final norm."""
    columns = ((ids_BT == latent_id) & mask_BT).any(0).nonzero()[:, 0].tolist()
    inputs_BTD = model.get_input_embeddings()(ids_BT)
    cache, hidden, start = DynamicCache(config=model.config), [], 0
    for end in [*columns, ids_BT.shape[1]]:
        new_BTD = inputs_BTD[:, start:end]
        if hidden:  # the thought, and whatever stands between it and the next
            new_BTD = torch.cat([hidden[-1][:, -1:], new_BTD[:, 1:]], 1)
        output = model.base_model(
            inputs_embeds=new_BTD,
            attention_mask=mask_BT[:, :end].long(),
            position_ids=positions_BT[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        hidden.append(output.last_hidden_state)
        start = end
    return torch.cat(hidden, 1), cache


def continue_all(
    model: Any, cache: DynamicCache, mask_BT: Tensor, logits_BV: Tensor, end_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy decoding of all rows, one token a pass, until every row has ended."""
    ends = torch.tensor(list(end_ids), device=model.device)
    ids_B = logits_BV.argmax(-1)
    written, ended_B = [ids_B], torch.isin(ids_B, ends)
    while not bool(ended_B.all()) and len(written) < max_new_tokens:
        positions_B1 = mask_BT.sum(1, keepdim=True)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
        output = model(
            input_ids=ids_B[:, None],
            attention_mask=mask_BT.long(),
            position_ids=positions_B1,
            past_key_values=cache,
            use_cache=True,
        )
        ids_B = output.logits[:, -1].argmax(-1)
        written.append(ids_B)
        ended_B = ended_B | torch.isin(ids_B, ends)
    return [until_end(row, end_ids) for row in torch.stack(written, 1).tolist()]
