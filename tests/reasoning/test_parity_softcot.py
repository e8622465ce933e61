"""SoftCoT against numbers of the official code (xuyige/SoftCoT @ fa7f537d), recorded with its unmodified classes on random ids.

The rule: behind the slots of the backbone stand W h + b, with h the assistant's last hidden state at its own slots; everything
else is an ordinary embedding. Recorded batches are padded on the right, ours on the left up to the target: rows are compared at
real places. HF's Llama rounds to fp32 inside (norms, rotary angles), so fp64 agrees to 1e-5 only.
"""

from __future__ import annotations

import parity_fakes
import pytest
import torch
from parity_fakes import DTYPES, IdTokenizer, encoded, losses_of_four_steps, names, needs_fixtures, recorded, tensors, watching
from transformers import LlamaConfig, LlamaForCausalLM

from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import IGNORED, Parts
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.softcot import Softcot
from strategies.frozen_backbone import FrozenBackbone

pytestmark = needs_fixtures
_made_up_tokens = parity_fakes._made_up_tokens
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def numbers():
    return recorded("softcot/forward.json"), tensors("softcot/forward_tensors.safetensors")


def llama(found: dict, which: str, dtype: torch.dtype, lines: dict[str, list[int]]) -> LanguageModel:
    """Recorded bf16 weights, the same values in another type."""
    model = LlamaForCausalLM(LlamaConfig(**found[f"{which}_config"]))
    missing, unexpected = model.load_state_dict(tensors(f"softcot/{which}_llama_bf16.safetensors"), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    ids = found["token_ids"]
    far = 10**6  # thoughts that SoftCoT does not have
    tokenizer = IdTokenizer(lines, names(far, far + 1, far + 2, slot=ids["unk_placeholder"]), ids["eot_id"])
    return LanguageModel(model.to(dtype), tokenizer, which, None, dtype)


def official_parts(numbers, dtype: str, reasoning=None) -> Parts:
    """Backbone, assistant and projector with the recorded weights; the assistant's prompts are known by their questions."""
    found, kind = numbers[0], DTYPES[dtype]
    prompts = {f"{i}\n": f["assistant_input_ids"][: f["thought_index"][2]] for i, f in enumerate(found["features"])}
    reasoning = reasoning or Softcot(Softcot.Settings(soft_thoughts=found["num_thought_tokens"]))
    parts = Parts(llama(found, "base", kind, {}), llama(found, "assistant", kind, prompts), reasoning)
    reasoning.build(parts, seed=0)
    if isinstance(reasoning, Softcot):
        weights = tensors("softcot/projection_bf16.safetensors")
        with torch.no_grad():
            reasoning.projector.outer.weight.copy_(weights["weight"])
            reasoning.projector.outer.bias.copy_(weights["bias"])
    return parts


def rows_of(numbers, *, target: bool = True):
    rows = []
    for i, feature in enumerate(numbers[0]["features"]):
        first = next(place for place, label in enumerate(feature["labels"]) if label != IGNORED)
        rows.append(encoded(feature["input_ids"] if target else feature["input_ids"][:first], first, question=str(i)))
    return rows


def mean_loss(parts: Parts, rows) -> torch.Tensor:
    loss = parts.reasoning.loss(parts, parts.reasoning.collate(rows))
    return loss.loss_sum / loss.n_tokens


def frozen(parts: Parts, learning_rate: float = 1e-2) -> FrozenBackbone:
    strategy = FrozenBackbone(FrozenBackbone.Settings(learning_rate=learning_rate))
    strategy.prepare(parts, seed=0)
    return strategy


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_slots_and_the_assistants_states(dtype, numbers):
    found, whole = numbers
    parts = official_parts(numbers, dtype)
    prompts = [parts.states.prompt_ids(str(i)) for i in range(3)]
    states_BKA = parts.states.states(prompts, 4)
    batch = parts.reasoning.collate(rows_of(numbers))
    for row, feature in enumerate(found["features"]):
        start, end, first, last = feature["thought_index"]
        assert prompts[row] == feature["assistant_input_ids"][:first]
        expected = whole[f"assistant_last_hidden_{dtype}"][row, first:last].float()
        torch.testing.assert_close(states_BKA[row], expected, atol=TOLERANCE, rtol=0)
        real_T = batch["prefix_mask_BT"][row]
        slots_T = parts.reasoning.marked(parts, batch, "slot")[row][real_T]
        assert slots_T.nonzero()[:, 0].tolist() == list(range(start, end))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_what_the_backbone_reads_and_what_it_says(dtype, numbers, monkeypatch):
    found, whole = numbers
    parts = official_parts(numbers, dtype)
    batch = parts.reasoning.collate(rows_of(numbers))
    with torch.no_grad(), watching(parts.backbone, monkeypatch) as seen:
        state = parts.reasoning.begin(parts, batch)
        parts.reasoning.extend(parts, state, batch["target_BT"])
    assert seen.calls == 2
    last = whole[f"logits_{dtype}"].shape[1]
    for row, feature in enumerate(found["features"]):
        n = len(feature["input_ids"])
        inputs_TD, hidden_TD = seen.rows("inputs")[row][:n], seen.rows("hidden")[row][:n]
        torch.testing.assert_close(inputs_TD, whole[f"inputs_embeds_{dtype}"][row, :n], atol=TOLERANCE, rtol=0)
        start = len(found["batch"]["input_ids"][row]) - last  # the recorded logits are those of the last columns, padding too
        expected = whole[f"logits_{dtype}"][row, : n - start]
        torch.testing.assert_close(parts.backbone.logits(hidden_TD[start:]), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_loss_and_the_projectors_gradient(dtype, numbers):
    found, whole = numbers
    expected, parts = found["results"][dtype], official_parts(numbers, dtype)
    frozen(parts)
    rows = rows_of(numbers)
    loss = parts.reasoning.loss(parts, parts.reasoning.collate(rows))
    assert loss.n_tokens == sum(expected_n := found["results"]["n_label_tokens"]) == sum(len(r.target_ids) for r in rows)
    mean = loss.loss_sum / loss.n_tokens
    assert mean.item() == pytest.approx(expected["loss"], abs=TOLERANCE)
    if dtype == "f64":
        assert mean.item() == pytest.approx(expected["loss_full_f64_recomputed"], abs=1e-6)
    singles = [s / n for s, n in zip(loss.per_example_B.tolist(), expected_n, strict=True)]
    assert singles == pytest.approx(found["results"]["single_example_losses_f32"], abs=TOLERANCE)
    alone = [mean_loss(parts, [row]).item() for row in rows]
    assert alone == pytest.approx(found["results"]["single_example_losses_f32"], abs=TOLERANCE)
    mean.backward()
    outer = parts.reasoning.projector.outer
    for name in ("weight", "bias"):
        grad = getattr(outer, name).grad
        torch.testing.assert_close(grad, whole[f"grad_proj_{name}_{dtype}"].float(), atol=TOLERANCE, rtol=0)
        assert grad.norm().item() == pytest.approx(expected[f"grad_{name}_l2"], abs=TOLERANCE)
    with_grad = [n for n, p in parts.reasoning.named_parameters() if p.grad is not None]
    assert len(with_grad) == len(expected["n_params_with_grad"]) == 2
    assert all(p.grad is None for model in (parts.backbone, parts.assistant) for p in model.model.parameters())


@pytest.mark.parametrize("rate", ["2e-5", "1e-2"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_four_steps_of_adamw(dtype, rate, numbers):
    parts = official_parts(numbers, dtype)
    losses = four_losses(parts, numbers, float(rate))
    assert losses == pytest.approx(numbers[0]["results"][dtype][f"adamw_lr{rate}_losses_4steps"], abs=TOLERANCE)


def four_losses(parts: Parts, numbers, rate: float) -> list[float]:
    optimizer = torch.optim.AdamW(frozen(parts, rate).trainable(parts))
    rows = rows_of(numbers)
    return losses_of_four_steps(optimizer, lambda: mean_loss(parts, rows))


def test_without_soft_thoughts_the_placeholders_are_ordinary_tokens(numbers):
    parts = official_parts(numbers, "f32", Cot())
    assert mean_loss(parts, rows_of(numbers)).item() == pytest.approx(
        numbers[0]["results"]["loss_num_thought_tokens_0_f32"], abs=TOLERANCE
    )


def test_greedy_answers(numbers):
    """All three at once."""
    parts = official_parts(numbers, "f32")
    wanted = numbers[0]["greedy_f32"]
    rows = rows_of(numbers, target=False)
    assert [row.prefix_ids for row in rows] == [w["prompt_ids"] for w in wanted]
    written = generate(parts.reasoning, parts, rows, 12)
    assert [g.ids for g in written] == [w["new_tokens"] for w in wanted]


# ------------------------------------------------------------------------------------- where ours differs on purpose


def test_a_bf16_backbone_with_an_fp32_projector_learns_where_the_original_does_not(numbers):
    """The original keeps the projector in bf16 as well: at 2e-5 its updates are rounded away and the loss does not fall."""
    expected = numbers[0]["results"]["bf16"]
    assert expected["adamw_lr2e-5_losses_4steps"][3] > expected["adamw_lr2e-5_losses_4steps"][0]
    parts = official_parts(numbers, "bf16")
    outer = parts.reasoning.projector.outer
    before = outer.weight.detach().clone()
    losses = four_losses(parts, numbers, 2e-5)
    assert outer.weight.dtype == torch.float32
    assert losses[0] == pytest.approx(expected["loss"], abs=5e-3)
    moved = outer.weight.detach() != before
    assert moved.float().mean() == 1.0
    rounded = outer.weight.detach().bfloat16() != before.bfloat16()
    assert rounded.float().mean() < 0.3  # what would be left of it in bf16
    exact = official_parts(numbers, "f32")
    with torch.no_grad():
        exact.reasoning.projector.outer.weight.copy_(outer.weight)
        exact.reasoning.projector.outer.bias.copy_(outer.bias)
        after = mean_loss(exact, rows_of(numbers)).item()
    assert after == pytest.approx(7.11266, abs=2e-4)  # the fp32 run after its fourth step: 7.1194 - 4 * .00168


def test_the_end_of_text_is_trained(numbers):
    """The original's data preparation slices the last token off, so its chains are never taught to end. Ours is a target as any
    other; without it the loss would be that of the tokens before."""
    parts = official_parts(numbers, "f64")
    rows = rows_of(numbers)
    assert all(row.target_ids[-1] == parts.backbone.eos_id for row in rows)
    sliced = [encoded([*row.prefix_ids, *row.target_ids[:-1]], len(row.prefix_ids), row.example.question) for row in rows]
    batch, short = parts.reasoning.collate(rows), parts.reasoning.collate(sliced)
    with torch.no_grad():
        whole, less = parts.reasoning.loss(parts, batch), parts.reasoning.loss(parts, short)
        ends_BV = torch.stack(
            [hidden[len(row.target_ids) - 1] for hidden, row in zip(parts.reasoning.predict(parts, batch), rows, strict=True)]
        )
        ends = -parts.backbone.logits(ends_BV).log_softmax(-1)[:, parts.backbone.eos_id]
    assert whole.n_tokens == less.n_tokens + 3
    torch.testing.assert_close(whole.per_example_B, less.per_example_B + ends, atol=TOLERANCE, rtol=0)
