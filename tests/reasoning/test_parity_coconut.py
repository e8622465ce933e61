"""Coconut against numbers of the official code (facebookresearch/coconut @ 27273cb8), recorded with its unmodified classes.

Ours lays batches out differently (rows end their prefix in one column; theirs begin their latents in one), so everything is
compared row by row at real places.
"""

from __future__ import annotations

import random

import parity_fakes
import pytest
import torch
from parity_fakes import DTYPES, IdTokenizer, encoded, losses_of_four_steps, names, needs_fixtures, recorded, tensors, watching
from transformers import GPT2Config, GPT2LMHeadModel

from cl_softcot.models.language_model import LanguageModel
from cl_softcot.models.text import TextFormat
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import IGNORED, Parts, Phase
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.direct import Direct
from cl_softcot.tasks.base import Example
from strategies.full_finetune import FullFinetune

pytestmark = needs_fixtures
_made_up_tokens = parity_fakes._made_up_tokens
TOLERANCE = {"f32": 1e-5, "f64": 1e-10}


# --------------------------------------------------------------------------------------------- sequences and batches


def ways(name: str):
    """Our setting for each of the recorded configurations; the leak is switched on where the original has it."""
    full = {"thoughts_per_step": 1, "max_stage": 6, "drop_all_after_last": True}
    gsm = {"thoughts_per_step": 2, "max_stage": 3, "drop_all_after_last": True}
    leaky = {"pad_latent_to_max": False, "leak_gold_steps": True}
    return {
        "prosqa_yaml": lambda: Coconut(Coconut.Settings(**full)),
        "prosqa_nopad": lambda: Coconut(Coconut.Settings(**full, **leaky)),
        "gsm_yaml": lambda: Coconut(Coconut.Settings(**gsm)),
        "gsm_nopad": lambda: Coconut(Coconut.Settings(**gsm, **leaky)),
        "no_thoughts": lambda: Coconut(Coconut.Settings(**{**full, "thoughts_per_step": 0}, markers="none")),
        "cot": Cot,
        "no_cot": Direct,
    }[name]()


def recorded_rows(which: str) -> tuple[list[Example], TextFormat]:
    """The recorded questions as examples, and a text format whose tokenizer knows their lines."""
    found = recorded("coconut/collate.json")
    ids, part = found["special_ids"], found["sets"][which]
    lines, items = {}, []
    for row, ids_of in zip(part["rows"], part["tokenized"], strict=True):
        lines[row["question"] + "\n"] = ids_of["question_tokenized"]
        lines |= {step + "\n": piece for step, piece in zip(row["steps"], ids_of["steps_tokenized"], strict=True)}
        assert ids_of["answer_tokenized"][-1] == ids["eos"]
        lines[f"### {row['answer']}"] = ids_of["answer_tokenized"][:-1]
        items.append(Example(row["question"], which, row["question"], tuple(row["steps"]), row["answer"]))
    special = {"latent-start": ids["start"], "latent-end": ids["end"], "latent": ids["latent"], "slot": 10**6, "pause": 10**6 + 1}
    tokenizer = IdTokenizer(lines, {}, ids["eos"])
    return items, TextFormat(tokenizer, special, ids["eos"], max_length=1024, model_name="recorded")


def configurations() -> list[tuple[str, str, str]]:
    wanted = {"prosqa": ["prosqa_yaml", "prosqa_nopad", "cot", "no_cot", "no_thoughts"], "gsm8k": ["gsm_yaml", "gsm_nopad"]}
    stages = {"prosqa_yaml": "01234567", "prosqa_nopad": "02467", "no_thoughts": "0137", "gsm_yaml": "01234", "gsm_nopad": "134"}
    return [(which, name, stage) for which, found in wanted.items() for name in found for stage in stages.get(name, "0")]


def test_every_recorded_configuration_is_compared():
    found = recorded("coconut/collate.json")
    there = {
        (which, name, stage)
        for which, part in found["sets"].items()
        for name, config in part["configs"].items()
        for stage in config["stages"]
    }
    assert there == set(configurations())
    stages = [
        stage for part in found["sets"].values() for config in part["configs"].values() for stage in config["stages"].values()
    ]
    assert sum(stage["batch"] is not None for stage in stages) >= 8


@pytest.mark.parametrize(("which", "name", "stage"), configurations())
def test_sequences_and_batches_are_the_original_ones(which, name, stage):
    items, text = recorded_rows(which)
    reasoning = ways(name)
    expected = recorded("coconut/collate.json")["sets"][which]["configs"][name]["stages"][stage]
    rows = [reasoning.encode(text, item, Phase(int(stage), 1), random.Random(0)) for item in items]
    for row, wanted in zip(rows, expected["train"], strict=True):
        assert row.prefix_ids + row.target_ids == wanted["input_ids"]
        assert len(row.prefix_ids) == wanted["labels_nonmasked_from"]
    asked = [reasoning.encode(text, item, Phase(int(stage), 0, answering=True), random.Random(0)) for item in items]
    assert [row.prefix_ids for row in asked] == expected["gen_prompts"]

    ours, theirs = reasoning.collate(rows), expected["batch"]
    ids_BT = torch.cat([ours["prefix_BT"], ours["target_BT"]], 1)
    labels_BT = torch.cat([torch.full_like(ours["prefix_BT"], IGNORED), ours["labels"]], 1)
    mask_BT = torch.cat([ours["prefix_mask_BT"], ours["labels"] != IGNORED], 1)
    positions_BT = mask_BT.long().cumsum(1) - 1
    for row in range(len(items) if theirs else 0):  # whole batches are recorded for some stages
        real = torch.tensor(theirs["attention_mask"][row], dtype=torch.bool)
        for mine, key in ((ids_BT, "input_ids"), (labels_BT, "labels"), (positions_BT, "position_ids")):
            assert mine[row][mask_BT[row]].tolist() == torch.tensor(theirs[key][row])[real].tolist(), key
    latents = [(ids == text.special["latent"]).nonzero()[:, 0].tolist() for ids in ids_BT]
    if len({len(found) for found in latents}) == 1 and latents[0]:  # then the two layouts agree in their left padding as well
        assert (~ours["prefix_mask_BT"]).sum(1).tolist() == expected["batch_left_pad"]
        assert [found[0] for found in latents] == expected["batch_first_latent"]


def test_answers_never_depend_on_the_gold_chain_by_default():
    """The original, with pad_latent_to_max off, answers with min(k, #gold steps) thoughts; ours only if the leak is asked for."""
    items, text = recorded_rows("prosqa")
    assert len({len(item.steps) for item in items}) == 3
    settings = {"max_stage": 6, "drop_all_after_last": True, "pad_latent_to_max": False}
    for leak, expected in ((False, [6, 6, 6]), (True, [3, 4, 6])):
        reasoning = Coconut(Coconut.Settings(**settings, leak_gold_steps=leak))
        asked = [reasoning.encode(text, item, Phase(7, 0, answering=True), random.Random(0)) for item in items]
        assert [row.prefix_ids.count(text.special["latent"]) for row in asked] == expected
    with pytest.raises(ValueError, match="leak_gold_steps"):
        Coconut.Settings(leak_gold_steps=True)
    assert not Coconut.Settings().leak_gold_steps


# ------------------------------------------------------------------------------------------------------- numbers


def cases() -> list[str]:
    shared = ["aligned_same_count", "different_count", "one_without_latents", "no_latents"]
    return [*shared, "single_A", "single_B", "single_C"]


def official_model(dtype: str, markers: str, eos: int = 0) -> Parts:
    """The recorded weights in our classes."""
    found = recorded("coconut/forward.json")
    model = GPT2LMHeadModel(GPT2Config(**found["config"], attn_implementation="eager"))
    missing, unexpected = model.load_state_dict(tensors("coconut/tiny_gpt2.safetensors"), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    ids = found["token_ids"]
    tokenizer = IdTokenizer({}, names(ids["start"], ids["end"], ids["latent"]), eos)
    backbone = LanguageModel(model.to(DTYPES[dtype]), tokenizer, "recorded", None, DTYPES[dtype])
    assert backbone.vocab_size == 259
    parts = Parts(backbone, None, Coconut(Coconut.Settings(markers=markers)))
    parts.reasoning.build(parts, seed=0)
    return parts


def batch_of(parts: Parts, case: dict):
    rows = [
        encoded(f["input_ids"], next(i for i, label in enumerate(f["labels"]) if label != IGNORED))
        for f in case["features_before_collation"]
    ]
    return parts.reasoning.collate(rows)


def mean_loss(parts: Parts, batch) -> torch.Tensor:
    loss = parts.reasoning.loss(parts, batch)
    assert loss.n_tokens == int((batch["labels"] != IGNORED).sum())
    return loss.loss_sum / loss.n_tokens


@pytest.fixture(scope="module")
def numbers():
    return recorded("coconut/forward.json"), tensors("coconut/forward_tensors.safetensors")


def test_every_recorded_case_is_compared(numbers):
    assert set(numbers[0]["cases"]) == {*cases(), "_unaligned_batch"}


@pytest.mark.parametrize("markers", ["table", "own"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", cases())
def test_logits_thoughts_and_loss(name, dtype, markers, numbers, monkeypatch):
    """Before anything is trained the markers' own rows are copies of the table's: both settings give the original's numbers."""
    case, whole = numbers[0]["cases"][name], numbers[1]
    parts, tolerance = official_model(dtype, markers), TOLERANCE[dtype]
    batch = batch_of(parts, case)
    with torch.no_grad():
        assert mean_loss(parts, batch).item() == pytest.approx(case[f"loss_{dtype}"], abs=tolerance)
        with watching(parts.backbone, monkeypatch) as seen:
            state = parts.reasoning.begin(parts, batch)
            assert state.forward_passes == case["gen_forward_cnt"]
            parts.reasoning.extend(parts, state, batch["target_BT"])
    for row, (inputs_TD, hidden_TD) in enumerate(zip(seen.rows("inputs"), seen.rows("hidden"), strict=True)):
        real = torch.tensor(case["attention_mask"][row], dtype=torch.bool)
        n = int(real.sum())
        logits_TV = parts.backbone.logits(hidden_TD[:n])
        expected = {key: whole[f"{name}.{key}_{dtype}"][row][real] for key in ("logits", "inputs_embeds")}
        torch.testing.assert_close(logits_TV, expected["logits"], atol=tolerance, rtol=0)
        torch.testing.assert_close(inputs_TD[:n], expected["inputs_embeds"], atol=tolerance, rtol=0)
        ids = torch.tensor(case["input_ids"][row])[real]
        thoughts_KD = inputs_TD[:n][ids == parts.backbone.special["latent"]]
        for key, values in (("l2", thoughts_KD.norm(dim=-1)), ("first4", thoughts_KD[:, :4])):
            wanted = torch.tensor(case[f"latent_embed_{key}_{dtype}"][row], dtype=values.dtype).reshape(values.shape)
            torch.testing.assert_close(values, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", cases())
def test_gradients(name, dtype, numbers):
    case, whole = numbers[0]["cases"][name], numbers[1]
    parts = official_model(dtype, "table")
    assert not list(parts.reasoning.parameters())
    parts.backbone.model.requires_grad_(True)
    mean_loss(parts, batch_of(parts, case)).backward()
    got = {n: p.grad for n, p in parts.backbone.model.named_parameters()}
    expected = case[f"grad_l2_{dtype}"]
    assert got.keys() == expected.keys() and "lm_head.weight" not in got  # the head is tied: one tensor, both gradients
    for key, value in expected.items():
        assert got[key].norm().item() == pytest.approx(value, abs=TOLERANCE[dtype], rel=TOLERANCE[dtype]), key
    total = torch.stack([grad.norm() for grad in got.values()]).norm().item()
    assert total == pytest.approx(case[f"grad_global_l2_{dtype}"], abs=TOLERANCE[dtype], rel=TOLERANCE[dtype])
    if (name, dtype) == ("different_count", "f64"):
        for key, parameter in (("wpe", "transformer.wpe.weight"), ("h0_c_attn", "transformer.h.0.attn.c_attn.weight")):
            torch.testing.assert_close(got[parameter], whole[f"{name}.grad_{key}_f64"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", cases())
def test_four_steps_of_adamw(name, dtype, numbers):
    """Through the strategy, with the paper's rate and decay."""
    case = numbers[0]["cases"][name]
    parts = official_model(dtype, "table")
    strategy = FullFinetune(FullFinetune.Settings(learning_rate=1e-4, weight_decay=0.01))
    strategy.prepare(parts, seed=0)
    batch = batch_of(parts, case)
    losses = losses_of_four_steps(torch.optim.AdamW(strategy.trainable(parts)), lambda: mean_loss(parts, batch))
    assert losses == pytest.approx(case[f"adamw_losses_4steps_{dtype}"], abs=TOLERANCE[dtype])
    assert losses[3] < losses[0] - 0.1


# ------------------------------------------------------------------------------------- where ours differs on purpose


def test_own_markers_split_the_gradient_of_the_tables_rows(numbers):
    """In the original the rows of <bol> and <eol> get a gradient as inputs and, the head being tied, as outputs. With markers of
    their own the first part goes to them; together the two are the original's gradient."""
    case = numbers[0]["cases"]["different_count"]
    grads = {}
    for markers in ("table", "own"):
        parts = official_model("f64", markers)
        parts.backbone.model.requires_grad_(True)
        mean_loss(parts, batch_of(parts, case)).backward()
        grads[markers] = parts.backbone.model.transformer.wte.weight.grad
    own_2D = parts.reasoning.markers_2D.grad
    rows = [parts.backbone.special[name] for name in ("latent-start", "latent-end")]
    assert own_2D.norm() > 0.01 and grads["own"][rows].norm() > 0.001
    together = grads["own"].clone()
    together[rows] += own_2D
    torch.testing.assert_close(together, grads["table"], atol=1e-10, rtol=0)
    assert together.norm().item() == pytest.approx(case["grad_l2_f64"]["transformer.wte.weight"], abs=1e-10)


def test_own_markers_train_almost_as_the_originals(numbers):
    """Same loss before the first step; afterwards AdamW moves two rows more, which is why the setting exists."""
    case = numbers[0]["cases"]["different_count"]
    parts = official_model("f64", "own")
    parts.backbone.model.requires_grad_(True)
    optimizer = torch.optim.AdamW([*parts.backbone.model.parameters(), *parts.reasoning.parameters()], lr=1e-4, weight_decay=0.01)
    losses, batch = [], batch_of(parts, case)
    for _ in range(4):
        loss = mean_loss(parts, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gaps = [abs(a - b) for a, b in zip(losses, case["adamw_losses_4steps_f64"], strict=True)]
    assert gaps[0] < 1e-10 and all(1e-7 < gap < 5e-3 for gap in gaps[1:]), gaps


def test_by_default_added_tokens_take_no_share_of_the_probability(numbers):
    """The original's softmax runs over all 259 tokens, ours over the 256 of the text: its logits less those of the three."""
    case, whole = numbers[0]["cases"]["aligned_same_count"], numbers[1]
    parts = official_model("f64", "own")
    parts.backbone.vocab_size = 256  # as LanguageModel cuts it for a model to which the tokens were added
    loss = mean_loss(parts, batch_of(parts, case)).item()
    logits_BTV, labels_BT = whole["aligned_same_count.logits_f64"], torch.tensor(case["labels"])
    there = labels_BT[:, 1:] != IGNORED
    cut_NV, labels_N = logits_BTV[:, :-1][there][:, :256], labels_BT[:, 1:][there]
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(cut_NV, labels_N).item(), abs=1e-10)
    assert loss < case["loss_f64"] - 0.001
    parts.backbone.write_markers()
    assert mean_loss(parts, batch_of(parts, case)).item() == pytest.approx(case["loss_f64"], abs=1e-10)


def test_rows_whose_thoughts_are_not_in_one_column(numbers):
    """The original raises IndexError where first thoughts are not in one column; ours needs no such alignment."""
    case = numbers[0]["cases"]["_unaligned_batch"]
    assert case["result"].startswith("IndexError")
    parts = official_model("f64", "table")
    ids, labels, mask = (case["input"][key] for key in ("input_ids", "labels", "attention_mask"))
    rows = []
    for row_ids, row_labels, row_mask in zip(ids, labels, mask, strict=True):
        real = [i for i, keep in zip(row_ids, row_mask, strict=True) if keep]
        rows.append(encoded(real, next(i for i, label in enumerate(row_labels) if label != IGNORED)))
    batch = parts.reasoning.collate(rows)
    latent_BT = (batch["prefix_BT"] == 258) & batch["prefix_mask_BT"]
    first = [int(row.nonzero()[0]) for row in latent_BT]
    assert len(set(first)) == 2  # not aligned in ours either
    expected = numbers[0]["cases"]["different_count"]["loss_f64"]
    assert mean_loss(parts, batch).item() == pytest.approx(expected, abs=1e-10)


# ------------------------------------------------------------------------------------------------------ decoding


def prompts(numbers) -> dict[str, dict]:
    found = numbers[0]["generate"]
    assert set(found) == {"A", "B", "C", "D_no_latent"}
    return found


def continuation(found: dict, which: str) -> list[int]:
    return found[which]["output"][len(found["prompt"]) :]


def ours(parts: Parts, found: dict, max_new_tokens: int):
    row = encoded(found["prompt"], len(found["prompt"]))
    return generate(parts.reasoning, parts, [row], max_new_tokens)[0]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_greedy_answers(dtype, numbers):
    """All four at once, with 3, 3, 1 and no thoughts; the original decodes one at a time."""
    found = list(prompts(numbers).values())
    parts = official_model(dtype, "table", eos=258)
    written = generate(parts.reasoning, parts, [encoded(f["prompt"], len(f["prompt"])) for f in found], 10)
    assert [g.ids for g in written] == [continuation(f, "no_eos") for f in found]
    assert [g.forward_passes for g in written] == [4 + 9] * 4  # rows of a batch think side by side
    for f in found:
        assert ours(parts, f, 10).forward_passes == f["no_eos"]["gen_forward_cnt"]


@pytest.mark.parametrize("name", ["A", "B", "C", "D_no_latent"])
def test_answers_end_at_the_first_end_of_text(name, numbers):
    """Defect of the original that is not repeated: the token that it writes first is never compared with end-of-text, so it is
    kept and decoding goes on to the limit. With that emulated all the rest agrees."""
    found = prompts(numbers)[name]
    later, first = found["eos_hit_later"], found["eos_is_first_token"]
    parts = official_model("f32", "table", eos=later["eos_token_id"])
    answer = ours(parts, found, 10)
    assert answer.ids == continuation(found, "eos_hit_later") and answer.finished
    assert answer.forward_passes == later["gen_forward_cnt"]
    assert answer.ids == continuation(found, "synced_gpus_true")

    parts = official_model("f32", "table", eos=first["eos_token_id"])
    stopped = ours(parts, found, 10)
    assert stopped.ids == [] and stopped.finished and stopped.n_tokens == 1
    assert continuation(found, "eos_is_first_token")[0] == first["eos_token_id"]
    assert emulated_quirk(parts, found["prompt"], 10) == continuation(found, "eos_is_first_token")


@torch.no_grad()
def emulated_quirk(parts: Parts, prompt: list[int], max_new_tokens: int) -> list[int]:
    state = parts.reasoning.begin(parts, parts.reasoning.collate([encoded(prompt, len(prompt))]))
    written = [state.logits_BV.argmax(-1)]  # not compared
    while len(written) < max_new_tokens:
        token_B = parts.reasoning.step(parts, state, written[-1]).argmax(-1)
        if token_B.item() == parts.backbone.eos_id:
            break
        written.append(token_B)
    return torch.cat(written).tolist()
