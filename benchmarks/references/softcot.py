"""SoftCoT (arXiv 2502.12134), plainly: the assistant's states at N slots, projected, are inputs of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.references.coconut import continue_all
from benchmarks.references.sequences import left_padded, mean_loss, sequences_of, until_end

Projector = Callable[[Tensor], Tensor]  # [B, N, A] -> [B, N, D]

# --------------------------------------------------------------------------------- the structure of the published code


def published_loss(
    model: Any,
    assistant: Any,
    projector: Projector,
    batch: Any,
    assistant_prompts: Sequence[Sequence[int]],
    *,
    slot_id: int,
    assistant_slot_id: int,
) -> Tensor:
    """Mean cross-entropy. The assistant reads every batch again, thoughts are put in one example after the other, the gradient
    goes through the whole prompt, and logits (the assistant's too) are made of the whole vocabulary at every place.
    """
    rows = sequences_of(batch)
    slots = [[t for t, token in enumerate(ids) if token == slot_id] for ids in batch["prefix_BT"].tolist()]
    inputs_BTD = model.get_input_embeddings()(rows.ids_BT).clone()
    states_BTA = _assistant_states(assistant, assistant_prompts, len(slots[0]), assistant_slot_id)
    for b, columns in enumerate(slots):
        inputs_BTD[b, columns[0] : columns[-1] + 1] = projector(states_BTA[b, -len(columns) :])
    output = model(inputs_embeds=inputs_BTD, attention_mask=rows.mask_BT.long(), position_ids=rows.positions_BT, use_cache=False)
    return mean_loss(output.logits, rows.labels_BT)


@torch.no_grad()
def published_answers(
    model: Any,
    assistant: Any,
    projector: Projector,
    prompts: Sequence[Sequence[int]],
    assistant_prompts: Sequence[Sequence[int]],
    *,
    slot_id: int,
    assistant_slot_id: int,
    end_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy answers, one prompt after the other, by transformers' own ``generate`` with its cache."""
    answers = []
    for prompt, question in zip(prompts, assistant_prompts, strict=True):
        slots = [t for t, token in enumerate(prompt) if token == slot_id]
        states_1TA = _assistant_states(assistant, [question], len(slots), assistant_slot_id)
        ids_1T = torch.tensor([list(prompt)], device=model.device)
        inputs_1TD = model.get_input_embeddings()(ids_1T).clone()
        inputs_1TD[0, slots[0] : slots[-1] + 1] = projector(states_1TA[0, -len(slots) :])
        written_1T = model.generate(
            inputs_embeds=inputs_1TD,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(end_ids),
            pad_token_id=end_ids[0],
        )
        answers.append(until_end(written_1T[0].tolist(), end_ids))
    return answers


def _assistant_states(assistant: Any, prompts: Sequence[Sequence[int]], n: int, slot_id: int) -> Tensor:
    """Last hidden states of prompts with ``n`` slots behind them, [B, T, A]; the slots are the last places of all rows."""
    ids_BT, mask_BT = left_padded([[*prompt, *[slot_id] * n] for prompt in prompts], assistant.device)
    positions_BT = (mask_BT.long().cumsum(1) - 1).clamp_min(0)
    output = assistant(input_ids=ids_BT, attention_mask=mask_BT.long(), position_ids=positions_BT, output_hidden_states=True)
    return output.hidden_states[-1]


# ------------------------------------------------------------------------------------------- with a cache, and batched


@torch.no_grad()
def cached_states(assistant: Any, prompts: Sequence[Sequence[int]], n: int, slot_id: int, batch_size: int = 64) -> Tensor:
    """The assistant's states at the slots of every prompt, [B, n, A]: computed once, for all that follows."""
    ids_BT, mask_BT = left_padded([[*prompt, *[slot_id] * n] for prompt in prompts], assistant.device)
    positions_BT = (mask_BT.long().cumsum(1) - 1).clamp_min(0)
    found = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        output = assistant.base_model(
            input_ids=ids_BT[rows], attention_mask=mask_BT[rows].long(), position_ids=positions_BT[rows], use_cache=False
        )
        found.append(output.last_hidden_state[:, -n:])
    return torch.cat(found)


def cached_loss(model: Any, projector: Projector, batch: Any, states_BNA: Tensor, *, slot_id: int) -> Tensor:
    """Mean cross-entropy: states at hand, thoughts placed at once; gradient through the whole prompt, logits everywhere."""
    rows = sequences_of(batch)
    inputs_BTD = _with_thoughts(model, rows.ids_BT, projector(states_BNA), slot_id)
    hidden_BTD = model.base_model(
        inputs_embeds=inputs_BTD, attention_mask=rows.mask_BT.long(), position_ids=rows.positions_BT, use_cache=False
    ).last_hidden_state
    return mean_loss(model.get_output_embeddings()(hidden_BTD), rows.labels_BT)


@torch.no_grad()
def cached_answers(
    model: Any,
    projector: Projector,
    prompts: Sequence[Sequence[int]],
    states_BNA: Tensor,
    *,
    slot_id: int,
    end_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy answers to all prompts side by side, until the last one has ended."""
    ids_BT, mask_BT = left_padded(prompts, model.device)
    positions_BT = (mask_BT.long().cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    hidden_BTD = model.base_model(
        inputs_embeds=_with_thoughts(model, ids_BT, projector(states_BNA), slot_id),
        attention_mask=mask_BT.long(),
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    logits_BTV = model.get_output_embeddings()(hidden_BTD)
    return continue_all(model, cache, mask_BT, logits_BTV[:, -1], end_ids, max_new_tokens)


def _with_thoughts(model: Any, ids_BT: Tensor, thoughts_BND: Tensor, slot_id: int) -> Tensor:
    """Embeddings with the thoughts in the slots, [B, T, D]."""
    inputs_BTD = model.get_input_embeddings()(ids_BT)
    return inputs_BTD.masked_scatter((ids_BT == slot_id)[..., None], thoughts_BND.to(inputs_BTD.dtype))
