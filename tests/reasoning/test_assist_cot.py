"""The assistant's words as a hint: what is written, when, and how it reaches a backbone with other words."""

from __future__ import annotations

import dataclasses
import random

import pytest
from model_fakes import chat_model, examples, gpt2_model, parts_of, words_model

from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.assist_cot import AssistCot, Hints, with_hint
from cl_softcot.tasks.base import Example
from cl_softcot.tasks.facts import Facts

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}


def encode(parts, items):
    reasoning = parts.reasoning
    reasoning.register(parts, items)
    return [reasoning.encode(parts.backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]


@pytest.fixture(scope="module")
def embedded():
    return load_language_model("builtin:tiny"), load_language_model("builtin:tiny-assistant")


@pytest.fixture(scope="module")
def private_facts():
    return Facts(Facts.Settings(store="private", lookups=1), "private").examples("test", 40, 0)


def test_the_embedded_backbone_is_told_what_only_its_assistant_knows(embedded, private_facts):
    """The whole prompt, in the words that conventions are stated in."""
    backbone, assistant = embedded
    for steps_only in (False, True):
        parts = parts_of(backbone, AssistCot(AssistCot.Settings(hint_steps_only=steps_only)), assistant)
        for item, row in zip(private_facts, encode(parts, private_facts), strict=True):
            said = item.steps[0] if steps_only else f"{item.steps[0]} . answer {item.answer}"
            words = " ".join(backbone.tokenizer.convert_ids_to_tokens(row.prefix_ids))
            assert words == f"<user> think aloud : note {said} . {item.question} <bot>"
            assert row.target_ids == backbone.text.target_ids(item.steps, item.answer)
            assert row.example is item  # judged, routed and named by the question as it was asked


def test_a_hint_is_the_assistants_own_greedy_answer(embedded, private_facts):
    _, assistant = embedded
    hints = Hints(assistant, 64)
    hints.register(private_facts)
    alone = BasePolicy(assistant).generate(private_facts, 64)
    assert [" ; ".join(hints.lines(e.question)) for e in private_facts] == [g.text for g in alone]
    assert any(len(hints.lines(e.question)) > 1 for e in private_facts)
    short = Hints(assistant, 3)
    assert [" ".join(short.lines(e.question)).split() for e in private_facts] == [
        g.text.replace(";", "").split()[:3] for g in alone
    ]


def test_every_hint_is_written_once_and_in_fixed_company(tmp_path, monkeypatch):
    assistant, items = words_model(tmp_path), examples(100)
    monkeypatch.setenv("CL_SOFTCOT_CACHE", "off")
    asked = []
    real = generate

    def counting(reasoning, parts, encoded, *args, **kwargs):
        asked.append([e.example.id for e in encoded])
        return real(reasoning, parts, encoded, *args, **kwargs)

    monkeypatch.setattr("cl_softcot.reasoning.assist_cot.generate", counting)
    whole, resumed = Hints(assistant, 8), Hints(assistant, 8)
    whole.register(items)
    resumed.register(items)
    lines = [whole.lines(e.question) for e in items]
    blocks, asked[:] = list(asked), []
    assert [whole.lines(e.question, answer=False) for e in items] and asked == []
    assert sorted(i for block in blocks for i in block) == sorted({e.question for e in items}) and len(blocks) == 2
    assert [resumed.lines(e.question) for e in items[::-1]] == lines[::-1]
    assert sorted(map(sorted, asked)) == sorted(map(sorted, blocks))


@pytest.mark.parametrize("writes", sorted(MODELS))
@pytest.mark.parametrize("reads", sorted(MODELS))
def test_backbone_and_assistant_may_have_different_tokenizers(reads, writes, tmp_path):
    """Random assistants: their text is any garbage, and still the prompt is one that the backbone can read."""
    backbone, assistant = MODELS[reads](tmp_path / "backbone"), MODELS[writes](tmp_path / "assistant", seed=3)
    parts = parts_of(backbone, AssistCot(AssistCot.Settings(max_new_tokens=12)), assistant)
    items = examples(6)
    plain = [len(backbone.text.prompt_ids(e.question)) for e in items]
    for item, row, n in zip(items, encode(parts, items), plain, strict=True):
        assert item.question in backbone.text.decode(row.prefix_ids)
        lines = [backbone.text.readable(line).strip() for line in parts.reasoning._hints.lines(item.question)]
        assert all(line in backbone.text.decode(row.prefix_ids) for line in lines)
        assert len(row.prefix_ids) > n or not any(lines)
        assert row.target_ids == backbone.text.target_ids(item.steps, item.answer)
    policy = MethodPolicy(parts, None)
    assert [g.ids for g in policy.generate(items, 6)] == [policy.generate([item], 6)[0].ids for item in items]


def test_what_the_backbone_cannot_read_is_left_out(tmp_path):
    text = words_model(tmp_path).text
    assert with_hint(text, "a b ?", ["a is Oslo", "Oslo Rome", "b is c"]) == "a is b is c a b ?"  # it has no 'note' and no '.'
    assert with_hint(text, "a b ?", []) == with_hint(text, "a b ?", ["Oslo"]) == "a b ?"
    plain = gpt2_model(tmp_path).text
    hinted = with_hint(plain, "What is one?", ["two is one", "### 2"])
    assert hinted.splitlines()[0] == "What is one?" and hinted.splitlines()[2:] == ["two is one", "### 2"]
    assert plain.readable("one\ufffd two") == "one\ufffd two"


def test_without_an_assistant_or_room_one_clear_error(tmp_path):
    assert AssistCot.needs_assistant(AssistCot.Settings())
    with pytest.raises(UserError, match="needs an assistant"):
        parts_of(words_model(tmp_path), AssistCot())
    small = words_model(tmp_path, "small", max_length=20)
    hints = Hints(small, 16)
    with pytest.raises(UserError, match="max_new_tokens") as error:
        hints.lines("a b c d e f g ?")
    assert "20 tokens" in str(error.value)
    long = dataclasses.replace(examples(1)[0], question=" ".join("abcdefgh" * 3))
    parts = parts_of(small, AssistCot(AssistCot.Settings(max_new_tokens=1)), words_model(tmp_path, "other"))
    with pytest.raises(UserError, match="does not fit"):
        encode(parts, [Example(long.id, "t", " ".join("abcdefghabcdefgh"), long.steps, long.answer)])


def test_trained_on_hints_the_backbone_uses_them(embedded, private_facts):
    """A few steps of full fine-tuning on people of the train split: what the assistant says about new ones is then believed."""
    import torch

    from strategies.full_finetune import FullFinetune

    backbone, assistant = embedded
    parts = parts_of(backbone.copy(), AssistCot(), assistant)
    strategy = FullFinetune()
    strategy.prepare(parts, seed=0)
    optimizer = torch.optim.AdamW(strategy.trainable(parts))
    train = encode(parts, Facts(Facts.Settings(store="private", lookups=1), "private").examples("train", 120, 0))

    def accuracy() -> float:
        written = MethodPolicy(parts, strategy).generate(private_facts, 24)
        return sum(g.text.endswith(f"answer {e.answer}") for g, e in zip(written, private_facts, strict=True)) / len(written)

    before = accuracy()
    for step in range(30):
        loss = parts.reasoning.loss(parts, parts.reasoning.collate(random.Random(step).sample(train, 32)))
        optimizer.zero_grad()
        (loss.loss_sum / loss.n_tokens).backward()
        optimizer.step()
    assert before < 0.5 and accuracy() > 0.9
