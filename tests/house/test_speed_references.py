"""The references of ``benchmarks/`` give the product's own losses, gradients and tokens; its formulas count what is computed."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.flops import Call, Shape, Work, answering_work, operations, padded_answering_work, shape_of
from benchmarks.machine import Rates
from benchmarks.measure import Case, Variant, run_case
from benchmarks.models import ModelSize, plain, random_examples, random_model
from benchmarks.references import coconut as coconut_reference
from benchmarks.references import softcot as softcot_reference
from benchmarks.stopwatch import PARTS, resolve, watching
from benchmarks.table import BLOCKS, lines_of, with_block
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.softcot import Softcot
from strategies.frozen_backbone import FrozenBackbone
from strategies.full_finetune import FullFinetune

ROOT = Path(__file__).resolve().parents[2]
GPT2 = ModelSize("gpt2", layers=2, width=64, heads=4, vocabulary=20003, context=128)
LLAMA = ModelSize("llama", layers=2, width=32, heads=4, kv_heads=2, vocabulary=101, context=128, feed_forward=48)
ASSISTANT = ModelSize("llama", layers=2, width=16, heads=2, vocabulary=101, context=128)


def coconut_rows(size: ModelSize, attention: str | None = None):
    """Parts, encoded rows and their batch, with three thoughts a row behind questions of unequal length."""
    reasoning = Coconut(Coconut.Settings(max_stage=3, markers="table"))
    parts = Parts(random_model(size, answer_tokens=4, attention=attention), None, reasoning)
    parts.reasoning.build(parts, seed=0)
    FullFinetune().prepare(parts, seed=0)
    examples = random_examples(5, size.vocabulary, question=(4, 17), step_tokens=3, answer_tokens=2)
    rows = [parts.reasoning.encode(parts.backbone.text, e, Phase(3, 0), random.Random(0)) for e in examples]
    return parts, rows, parts.reasoning.collate(rows)


def softcot_rows(attention: str | None = None):
    """Parts, encoded rows, their batch and the assistant's prompts, with six slots behind questions of unequal length."""
    backbone, assistant = random_model(LLAMA, answer_tokens=6, attention=attention), random_model(ASSISTANT, seed=1)
    parts = Parts(backbone, assistant, Softcot(Softcot.Settings(soft_thoughts=6)))
    parts.reasoning.build(parts, seed=0)
    FrozenBackbone().prepare(parts, seed=0)
    examples = random_examples(5, LLAMA.vocabulary, question=(4, 17), step_tokens=3, answer_tokens=2)
    rows = [parts.reasoning.encode(parts.backbone.text, e, Phase(0, 0), random.Random(0)) for e in examples]
    prompts = [parts.states.prompt_ids(e.question) for e in examples]
    return parts, rows, parts.reasoning.collate(rows), prompts


def mean_of(parts: Parts, batch) -> torch.Tensor:
    loss = parts.reasoning.loss(parts, batch)
    return loss.loss_sum / loss.n_tokens


def gradients(loss: torch.Tensor, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected) -> None:
    assert got.keys() == expected.keys() and expected
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("size", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_coconut_references_have_the_products_loss_and_gradients(size):
    parts, _, batch = coconut_rows(size)
    model, latent = parts.backbone.model, parts.backbone.special["latent"]
    own = mean_of(parts, batch)
    expected = gradients(own, model)
    for reference in (coconut_reference.published_loss, coconut_reference.cached_loss):
        loss = reference(model, batch, latent)
        assert loss.item() == pytest.approx(own.item(), abs=1e-5)
        assert_same_gradients(gradients(loss, model), expected)
    without = coconut_reference.cached_loss(model, batch, latent_id=-1)  # latents read as words: another loss
    assert abs(without.item() - own.item()) > 1e-3


def test_the_published_structure_needs_thoughts_in_one_column():
    parts, rows, _ = coconut_rows(GPT2)
    latent = parts.backbone.special["latent"]
    rows[0].prefix_ids.remove(latent)
    with pytest.raises(ValueError, match="same columns"):
        coconut_reference.published_loss(parts.backbone.model, parts.reasoning.collate(rows), latent)


@pytest.mark.parametrize("size", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_coconut_references_write_the_products_answers(size):
    parts, rows, _ = coconut_rows(size)
    special, text = parts.backbone.special, parts.backbone.text
    own = [g.ids for g in generate(parts.reasoning, parts, rows, 12)]
    assert len({len(ids) for ids in own}) > 1  # some end before the limit
    for reference in (coconut_reference.published_answers, coconut_reference.cached_answers):
        prompts = [row.prefix_ids for row in rows]
        assert reference(parts.backbone.model, prompts, special["latent"], text.end_ids, 12) == own


def test_softcot_references_have_the_products_loss_and_gradients():
    parts, _, batch, prompts = softcot_rows()
    model, assistant, projector = parts.backbone.model, parts.assistant.model, parts.reasoning.projector
    slots = {"slot_id": parts.backbone.special["slot"], "assistant_slot_id": parts.assistant.special["slot"]}
    own = mean_of(parts, batch)
    expected = gradients(own, projector)
    published = softcot_reference.published_loss(model, assistant, projector, batch, prompts, **slots)
    states_BNA = softcot_reference.cached_states(assistant, prompts, 6, slots["assistant_slot_id"], batch_size=2)
    cached = softcot_reference.cached_loss(model, projector, batch, states_BNA, slot_id=slots["slot_id"])
    for loss in (published, cached):
        assert loss.item() == pytest.approx(own.item(), abs=1e-5)
        assert_same_gradients(gradients(loss, projector), expected)
    other = softcot_reference.cached_loss(model, projector, batch, states_BNA.flip(1), slot_id=slots["slot_id"])
    assert abs(other.item() - own.item()) > 1e-4
    assert all(p.grad is None for p in model.parameters())


def test_softcot_references_write_the_products_answers():
    parts, rows, _, prompts = softcot_rows()
    model, assistant, projector = parts.backbone.model, parts.assistant.model, parts.reasoning.projector
    slot, assistant_slot = parts.backbone.special["slot"], parts.assistant.special["slot"]
    own = [g.ids for g in generate(parts.reasoning, parts, rows, 12)]
    assert len({len(ids) for ids in own}) > 1
    limits = {"slot_id": slot, "end_ids": parts.backbone.text.end_ids, "max_new_tokens": 12}
    asked = [row.prefix_ids for row in rows]
    assert own == softcot_reference.published_answers(
        model, assistant, projector, asked, prompts, assistant_slot_id=assistant_slot, **limits
    )
    states_BNA = softcot_reference.cached_states(assistant, prompts, 6, assistant_slot)
    assert own == softcot_reference.cached_answers(model, projector, asked, states_BNA, **limits)


# ---------------------------------------------------------------------------------------------------- operations


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_operations_of_training_are_those_that_torch_counts(size):
    """The Coconut reference with a cache: four calls, logits everywhere, gradients of all weights."""
    size = dataclasses.replace(size, width=64, feed_forward=128)
    parts, rows, batch = coconut_rows(size, attention="eager")
    model, latent = parts.backbone.model, parts.backbone.special["latent"]
    (B, T), columns = coconut_reference.sequences_of(batch).ids_BT.shape, sum(i == latent for i in rows[0].prefix_ids)
    assert columns == 3
    first = batch["prefix_BT"].shape[1] - columns - 1
    edges = [0, first, first + 1, first + 2, T]
    calls = [Call(b - a, a, logits=b - a, gradient="weights", times=B) for a, b in zip(edges, edges[1:], strict=False)]
    expected = operations(shape_of(model), calls, causal=False)
    assert counted(lambda: coconut_reference.cached_loss(model, batch, latent).backward()) == pytest.approx(expected, rel=0.01)
    forward = operations(shape_of(model), [dataclasses.replace(c, gradient="none") for c in calls], causal=False)
    with torch.no_grad():
        assert counted(lambda: coconut_reference.cached_loss(model, batch, latent)) == pytest.approx(forward, rel=0.01)
    assert operations(shape_of(model), calls, causal=True) < 0.999 * expected


def test_operations_through_a_frozen_backbone_are_those_that_torch_counts():
    parts, _, batch, prompts = softcot_rows(attention="eager")
    model, projector, slot = parts.backbone.model, parts.reasoning.projector, parts.backbone.special["slot"]
    states_BNA = softcot_reference.cached_states(parts.assistant.model, prompts, 6, parts.assistant.special["slot"])
    B, T = coconut_reference.sequences_of(batch).ids_BT.shape
    expected = operations(shape_of(model), [Call(T, logits=T, gradient="inputs", times=B)], causal=False)
    expected += 2 * 2 * B * 6 * projector.outer.weight.numel()  # forward, and the gradient of its weights
    found = counted(lambda: softcot_reference.cached_loss(model, projector, batch, states_BNA, slot_id=slot).backward())
    assert found == pytest.approx(expected, rel=0.01)


def test_what_has_to_be_computed_has_no_gradients_of_frozen_keys():
    shape = Shape(linear=1000, head=700, depth=2, attention=10, kv=40, total=2400)
    n, m = 3, 5  # pairs: 3 * 5 + 6; the two products of attention: 4 * 10 * 2 each
    pairs = n * m + 6
    forward = 2 * 1000 * n + 2 * 700 * 2 + 80 * pairs
    assert operations(shape, [Call(n, m, logits=2)], causal=True) == forward
    both = 2 * (2 * 1000 * n + 2 * 700 * 2) + 3 * 80 * pairs
    assert operations(shape, [Call(n, m, logits=2, gradient="inputs")], causal=True) == both
    # Keys and values of 5 places in front need none: two products of 3 x 5 pairs less.
    assert operations(shape, [Call(n, m, logits=2, gradient="inputs", frozen=m)], causal=True) == both - 80 * n * m
    assert operations(shape, [Call(n, m, logits=2, gradient="weights")], causal=True) == both + 2 * 1000 * n + 2 * 700 * 2


def test_the_floor_is_the_slower_of_computing_and_moving():
    shape = Shape(linear=1000, head=700, depth=2, attention=10, kv=40, total=2400)
    reading, writing = answering_work(shape, prompts=[4, 2], written=[3, 1])
    assert writing.flops == operations(shape, [Call(1, 4, logits=1), Call(1, 5, logits=1)], causal=True)
    assert writing.moved == 2 * 1700 * 4 + (4 + 5) * 40 * 4  # the weights once a step, and what is cached
    assert reading.moved == 1700 * 4
    padded = padded_answering_work(shape, prompts=[4, 2], written=[3, 1])
    calls = [Call(1, 4, logits=1, times=2), Call(1, 5, logits=1, times=2)]
    assert padded[0].flops == operations(shape, [Call(4, logits=4, times=2)], causal=False)
    assert padded[1].flops == operations(shape, calls, causal=False)
    assert padded[1].moved == 2 * 1700 * 4 + 2 * (4 + 5) * 40 * 4
    assert Work("", flops=10.0, moved=4.0).seconds(10.0, 1.0) == 4.0
    assert Work("", flops=10.0, moved=4.0).seconds(1.0, 1.0) == 10.0


# -------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def environment(monkeypatch):
    """The command sets variables and threads for its own process."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG", "CL_SOFTCOT_CACHE"):
        monkeypatch.setenv(name, "off" if name.startswith("CL") else "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_command_measures_a_case_and_writes_what_it_found(tmp_path, capsys, environment):
    assert main(["softcot_training", "--quick", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quick"] and {"processor", "cores", "threads", "torch", "revision"} <= found["machine"].keys()
    assert min(found["rates"]["float32"].values()) > 1e8
    case = found["cases"]["softcot_training"]
    assert case["agreement"]["same"] and case["agreement"]["largest_difference"] <= 1e-5 and case["agreement"]["loss"] > 1
    assert set(case["variants"]) == {"ours", "ours, seen before", "published", "cached"}
    for name, numbers in case["variants"].items():
        assert numbers["cpu_s"] > 0 and numbers["wall_s"] > 0 and numbers["repetitions"] == 1
        assert name.startswith("ours") or numbers["flops"] > case["floor"]["flops"] > 0
    cached = case["ratios"]["cached"]
    assert cached["share"] == pytest.approx(cached["time"] / cached["flops"]) and cached["floor"] > 1
    assert cached["flops"] == pytest.approx(case["variants"]["cached"]["flops"] / case["floor"]["flops"])
    assert cached["time"] == pytest.approx(case["variants"]["cached"]["cpu_s"] / case["variants"]["ours"]["cpu_s"])
    assert case["floor"]["seconds"] == pytest.approx(sum(case["floor"]["parts"].values()))
    printed = capsys.readouterr().out
    assert "softcot_training" in printed and "published" in printed and "NOT THE SAME" not in printed


def test_every_part_that_the_profile_names_is_there():
    owners = [resolve(place) for place in PARTS]
    before = [getattr(owner, name) for owner, name, _ in owners]
    with watching() as watch:
        assert all(getattr(owner, name) is not old for (owner, name, _), old in zip(owners, before, strict=True))
        with watch.part("answering", "decoding"), watch.part("learning", "judging"):
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
    assert [getattr(owner, name) for owner, name, _ in owners] == before
    seconds = watch.stop()
    assert seconds["learning", "judging"] >= 0.05 > seconds["answering", "decoding"]


def test_cases_for_a_gpu_work_at_a_tiny_size(capsys, environment):
    """In half precision, and on weights whose numbers are not there while rows are encoded and operations are counted."""
    assert main(["gpu_softcot_training_8b", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "bfloat16" in printed and "losses within" in printed and "NOT THE SAME" not in printed


def test_references_run_on_plain_layers():
    """A loaded model may have faster layers of ours: references must not profit from them."""
    made = random_model(LLAMA, attention="eager")
    kinds = {type(m).__module__ for m in plain(made).modules()}
    assert all(kind.startswith(("torch.", "transformers.")) for kind in kinds)
    assert plain(made).base_model.layers[0].mlp.up_proj.weight.equal(made.model.base_model.layers[0].mlp.up_proj.weight)


def test_a_reference_that_is_wrong_is_told():
    made = {"ours": 2.0, "published": 2.0 + 2e-5}
    case = Case("x", "x", {}, [Variant(name, lambda v=v: lambda: v) for name, v in made.items()], [Work("passes", 1e3, 0.0)])
    found = run_case(case, Rates(1e9, 1e9), "cpu", rounds=1)
    assert not found["agreement"]["same"] and "NOT THE SAME" in "\n".join(lines_of(found))
    answers = [Variant("ours", lambda: lambda: [[1, 2]]), Variant("cached", lambda: lambda: [[1]])]
    case = dataclasses.replace(case, variants=answers)
    assert not run_case(case, Rates(1e9, 1e9), "cpu", rounds=1)["agreement"]["same"]


def test_an_unknown_case_is_one_clear_line(capsys, environment):
    with pytest.raises(SystemExit, match="2"):
        main(["nothing"])
    said = capsys.readouterr().err
    assert "'nothing'" in said and "coconut_generation" in said and said.count("\n") == 1


def test_kept_results_are_what_the_readme_shows():
    """The tables of README.md are those of the files in results/ that they name."""
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    kept = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    shown = {kind: readme.split(f"<!-- {kind} -->\n", 1)[1].split(f"\n<!-- end {kind} -->", 1)[0] for kind in BLOCKS}
    made = {kind: set() for kind in BLOCKS}
    for path in kept:
        results = json.loads(path.read_text(encoding="utf-8"))
        kind = next(kind for kind in BLOCKS if kind in results)
        made[kind].add(BLOCKS[kind](results))
    for kind, found in made.items():
        assert not found or shown[kind] in found, f"run python -m benchmarks.table on the last {kind}"


def test_a_block_of_the_readme_is_replaced_and_nothing_else():
    text = "a\n<!-- cases -->\nold\n<!-- end cases -->\nb <!-- curves -->\n"
    assert with_block(text, "cases", "new\nlines") == text.replace("old", "new\nlines")
