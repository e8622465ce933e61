"""What the diagnostics of thoughts and chains say of models whose every answer is known."""

from __future__ import annotations

import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fakes import LETTERS, chat_model, examples, parts_of, words_model

from cl_softcot import registry
from cl_softcot.answering.evaluate import Probe
from cl_softcot.config.settings import EvaluateConfig
from cl_softcot.diagnostics._numbers import change, effective_rank, ratio, variance_shares
from cl_softcot.diagnostics._thoughts import Answered, PutIn, Recorder, answer_logps, answered, before_the_answer, recorded
from cl_softcot.diagnostics.base import Subject
from cl_softcot.diagnostics.faithfulness import Faithfulness, own_chain
from cl_softcot.diagnostics.frontier import Frontier, Look, look
from cl_softcot.diagnostics.interventions import Interventions, _noise, donors_of
from cl_softcot.diagnostics.readout import Readout
from cl_softcot.diagnostics.variance_split import VarianceSplit, split_of, variance_of
from cl_softcot.metrics.intervals import stratified_mean
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Reasoning
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.pause import Pause
from cl_softcot.reasoning.softcot import Softcot
from cl_softcot.tasks.base import Example, SearchGraph, Task, TaskSettings, facts_graph, premises_reversed
from strategies.base import Strategy

WIDTH, SCALE = 64, 20.0


class Letters(Task):
    """Chains of letters; a graph and a second way to say a chain as the generated family has them."""

    family = "letters"
    rewording = "in the opposite order"

    def __init__(self, items):
        super().__init__(TaskSettings(), "letters")
        self.items = items

    def examples(self, split, n, seed):
        return self.items[:n]

    def count(self, split):
        return len(self.items)

    def reword(self, steps):
        return premises_reversed(steps)

    def graph_of(self, example):
        return facts_graph(example.meta["facts"], example.steps, example.steps[0][0], LETTERS)


def chain(letters, *more):
    """An example whose steps walk along the letters; further facts are dead ends."""
    steps = tuple(f"{a} is {b}" for a, b in zip(letters, letters[1:], strict=False))
    question = " ".join(letters) + " ?"
    return Example(question, "letters", question, steps, letters[-1], {"facts": " . ".join([*steps, *more])})


@pytest.fixture
def identity(tmp_path):
    """A backbone whose head and embeddings are 20 times the unit vectors: a state that is one writes that token."""
    backbone = words_model(tmp_path, width=WIDTH)
    weight = backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.copy_(torch.eye(len(weight), WIDTH) * SCALE)
    return backbone


def subject_of(backbone, reasoning, items, assistant=None):
    parts = parts_of(backbone, reasoning, assistant)
    strategy = Strategy()
    strategy.prepare(parts, 0)
    evaluate = EvaluateConfig(test=len(items), max_new_tokens=24, bootstrap=200)
    probe = Probe("task", Letters(items), list(items))
    return Subject(
        parts, strategy, SimpleNamespace(), SimpleNamespace(), evaluate, 0, 1, ["letters"], [probe], [], SimpleNamespace()
    )


class Fake(Reasoning):
    """Says what ``hidden`` says: the state behind given ids, [D], for a prefix and what was written after it."""

    def hidden(self, parts, encoded, written, thoughts_KD):
        raise NotImplementedError

    def thoughts_now(self, parts, batch, edit):
        """[K_i, D] of each row, after the edit."""
        own_BKD = self.own(parts, batch)
        if own_BKD is None:
            return [None] * len(batch)
        marks_BT = self.marked(parts, batch, self.thought)
        flat_ND = own_BKD.flatten(0, 1) if edit is None else self.edited(parts, batch, own_BKD, edit)
        return list(flat_ND.split(marks_BT.sum(1).tolist()))

    def own(self, parts, batch):
        return None

    def begin(self, parts, batch, edit=None, room=None):
        thoughts = self.thoughts_now(parts, batch, edit)
        state = SimpleNamespace(forward_passes=1, rows=list(zip(batch["encoded"], thoughts, strict=True)))
        state.written = [[] for _ in state.rows]

        def keep(rows):
            state.rows, state.written = ([values[i] for i in rows.tolist()] for values in (state.rows, state.written))

        state.keep = keep
        state.logits_BV = self.look(parts, state)
        return state

    def look(self, parts, state):
        rows = zip(state.rows, state.written, strict=True)
        return parts.backbone.logits(torch.stack([self.hidden(parts, e, ids, t) for (e, t), ids in rows]))

    def step(self, parts, state, ids_B):
        for ids, token in zip(state.written, ids_B.tolist(), strict=True):
            ids.append(token)
        return self.look(parts, state)

    def predict(self, parts, batch, edit=None):
        T = batch["target_BT"].shape[1]
        rows = zip(batch["encoded"], self.thoughts_now(parts, batch, edit), strict=True)
        return torch.stack(
            [torch.stack([self.hidden(parts, e, (e.target_ids + [0] * T)[:t], th) for t in range(T)]) for e, th in rows]
        )


class Dictated(Fake):
    """Writes the k-th token that its thoughts say: everything hangs on them."""

    thought = "slot"

    def thoughts(self, stage):
        return ["slot"] * 3

    def steps_written(self, example, stage):
        return ()

    def own(self, parts, batch):
        rows = [torch.tensor(parts.backbone.text.target_ids((), e.example.answer)) for e in batch["encoded"]]
        return torch.nn.functional.one_hot(torch.stack(rows), WIDTH).float()

    def hidden(self, parts, encoded, written, thoughts_KD):
        k = len(written)
        return thoughts_KD[k] if k < len(thoughts_KD) else torch.zeros(WIDTH)


# -------------------------------------------------------------------------------------------------- interventions


def test_every_edit_destroys_an_answer_that_hangs_on_the_thoughts(identity):
    items = [chain([LETTERS[i], LETTERS[i + 1]]) for i in range(10)]
    subject = subject_of(identity, Dictated(), items)
    found = Interventions(Interventions.Settings(keep=[0.0, 0.4, 1.0])).measure(subject)["tasks"]["letters"]
    assert found["accuracy"]["value"] == 1.0 and found["n"] == 10 and found["thoughts"] == 3
    assert found["null"] == {
        "same_answers_with_an_edit_that_does_nothing": 1.0,
        "same_verdicts_with_thoughts_put_back": 1.0,
    }
    assert found["norm"] == {"mean": 1.0, "sd": 0.0}
    edits = found["edits"]
    assert set(edits) == {"keep_0", "keep_0.4", "keep_1", "zero", "noise", "swap", "filler", "shuffle"}
    assert "leaves every thought as it is" in edits["keep_1"]["skipped"]
    for name, numbers in edits.items():
        if name != "keep_1":
            assert numbers["accuracy"] == 0.0 and numbers["accuracy_change"]["value"] == -1.0, name
            assert numbers["accuracy_change"]["high"] < -0.4 and numbers["logp_change"]["value"] < -3, name
    # The gold answer is one token, read behind the marker: without its thought all tokens are alike.
    for name in ("keep_0", "keep_0.4", "zero"):
        assert edits[name]["logp_change"]["value"] == pytest.approx(-math.log(identity.vocab_size), abs=1e-5)
        assert edits[name]["p_change"]["value"] == pytest.approx(1 / identity.vocab_size - 1, abs=1e-5)
    # A wrong unit vector: 20 nats less than the right token.
    assert edits["swap"]["logp_change"]["value"] == pytest.approx(-SCALE, abs=1e-3)
    assert edits["swap"]["donors_with_the_same_answer"] == 0.0 and edits["filler"]["token"] == ":"


def test_swapped_thoughts_change_nothing_where_questions_share_them(tmp_path):
    items = examples(6, task="letters")
    subject = subject_of(words_model(tmp_path), Softcot(Softcot.Settings(source="free", soft_thoughts=2)), items)
    edits = Interventions().measure(subject)["tasks"]["letters"]["edits"]
    assert "leaves every thought as it is" in edits["swap"]["skipped"]
    assert edits["zero"]["logp_change"]["value"] != 0.0


@pytest.mark.parametrize("way", ["coconut", "softcot"])
def test_null_edits_change_nothing_and_others_something(way, tmp_path):
    reasoning = Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=1)) if way == "coconut" else Softcot()
    backbone, assistant = words_model(tmp_path), words_model(tmp_path, "assistant", width=16, seed=5)
    subject = subject_of(backbone, reasoning, examples(9, task="letters"), assistant)
    found = Interventions().measure(subject)["tasks"]["letters"]
    assert set(found["null"].values()) == {1.0}
    assert all(e["logp_change"]["value"] != 0.0 for e in found["edits"].values())
    assert {"keep_0", "keep_0.5", "zero", "noise", "swap", "filler", "shuffle"} == set(found["edits"])


def test_one_thought_has_no_order(tmp_path):
    subject = subject_of(words_model(tmp_path), Coconut(Coconut.Settings(max_stage=1)), examples(4, task="letters"))
    edits = Interventions().measure(subject)["tasks"]["letters"]["edits"]
    assert edits["shuffle"] == {"skipped": "one thought has no order"}
    assert edits["keep_0.5"] == {"skipped": "it keeps as many thoughts as keep_0"}


def test_taking_the_thoughts_away_leaves_plain_chain_of_thought(tmp_path):
    backbone = words_model(tmp_path)
    subject = subject_of(backbone, Softcot(Softcot.Settings(source="free")), examples(6, task="letters"))
    with subject.answering("letters"):
        encoded = subject.encode(subject.tasks[0].examples)
        none = answered(subject, subject.tasks[0], encoded, [torch.zeros(0, backbone.width)] * 6)
    plain = subject_of(backbone, Cot(), subject.tasks[0].examples)
    with plain.answering("letters"):
        whole, starts = before_the_answer(plain, plain.encode(plain.tasks[0].examples))
        expected = answer_logps(plain, whole, starts)
    assert none.logp == pytest.approx(expected, abs=1e-4)


def test_the_answers_probability_is_that_of_its_tokens_alone(tmp_path):
    """Against whole plain passes, with a tokenizer whose answers are several tokens."""
    backbone = chat_model(tmp_path)
    items = [Example(str(i), "letters", "one two", ("so it is",) * (i + 1), answer) for i, answer in enumerate(["42", "a b c"])]
    subject = subject_of(backbone, Cot(), items)
    with subject.answering("letters"):
        whole, starts = before_the_answer(subject, subject.encode(items))
        found = answer_logps(subject, whole, starts)
    for e, start, logp in zip(whole, starts, found, strict=True):
        assert backbone.tokenizer.decode(e.target_ids[start:]).strip() == e.example.answer
        ids = torch.tensor([[*e.prefix_ids, *e.target_ids]])
        with torch.no_grad():
            logits_TV = backbone.model(input_ids=ids).logits[0, :, : backbone.vocab_size].log_softmax(-1)
        first = len(e.prefix_ids) + start
        expected = sum(logits_TV[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1]))
        assert logp == pytest.approx(expected, abs=1e-3)


def test_later_thoughts_are_not_thought_anew_behind_a_changed_one(tmp_path):
    subject = subject_of(words_model(tmp_path), Coconut(Coconut.Settings(max_stage=3)), examples(3, task="letters"))
    with subject.answering("letters"):
        encoded = subject.encode(subject.tasks[0].examples)
        own = recorded(subject, encoded)
        changed = [torch.cat([torch.zeros_like(t[:1]), t[1:]]) for t in own]
        put_in, seen = PutIn(encoded, changed), Recorder()
        subject.write(encoded, edit=lambda t, place: seen(put_in(t, place), place), limit=1)
        anew = Recorder()

        def first_zero(thoughts_BKD, place):
            return anew(torch.where(place.index_BK[..., None] == 0, 0.0, thoughts_BKD), place)

        subject.write(encoded, edit=first_zero, limit=1)
    for e, t in zip(encoded, changed, strict=True):
        assert torch.equal(seen.of(e), t)
        assert not torch.allclose(anew.of(e)[2], t[2])  # as it would be


def test_an_edit_finds_its_rows_when_they_have_different_numbers_of_thoughts(tmp_path):
    subject = subject_of(words_model(tmp_path), Coconut(Coconut.Settings(max_stage=3)), examples(5, task="letters"))
    with subject.answering("letters"):
        encoded = subject.encode(subject.tasks[0].examples)
        own = recorded(subject, encoded)
        together = answered(subject, subject.tasks[0], encoded, [t[: i % 4] for i, t in enumerate(own)])
        pairs = enumerate(zip(encoded, own, strict=True))
        alone = [answered(subject, subject.tasks[0], [e], [t[: i % 4]]) for i, (e, t) in pairs]
    assert together.logp == pytest.approx([a.logp[0] for a in alone], abs=1e-4)


def test_noise_is_as_long_as_the_thought_and_donors_are_others():
    own = [torch.randn(3, 8) * (i + 1) for i in range(4)]
    noise = _noise(SimpleNamespace(seed=1), own)
    for a, b in zip(own, noise, strict=True):
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))
        assert torch.nn.functional.cosine_similarity(a, b).abs().max() < 0.999
    for n in range(2, 12):
        donors = donors_of(n, seed=n)
        assert sorted(donors) == list(range(n)) and all(i != d for i, d in enumerate(donors))


# --------------------------------------------------------------------------------------------------- faithfulness


class Writes(Fake):
    """Writes the gold chain, and as its answer what ``answer`` makes of the chain before the marker."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def hidden(self, parts, encoded, written, thoughts_KD):
        text = parts.backbone.text
        words = [text._word_of[i] for i in [*encoded.prefix_ids, *written]]
        words = words[words.index("<bot>") + 1 :]
        if words[-1:] == ["answer"]:
            token = text._vocabulary[self.answer(encoded.example, words[:-1])]
        elif "answer" in words:
            token = text.eos_id
        else:
            token = text.target_ids(encoded.example.steps, encoded.example.answer)[len(words)]
        return torch.nn.functional.one_hot(torch.tensor(token), WIDTH).float()


def last_word(example, words):
    """The last word that is no separator."""
    return next((word for word in reversed(words) if word != ";"), "?")


def test_an_answer_that_repeats_the_last_step_is_found_out(identity):
    items = [chain(LETTERS[i : i + 5]) for i in range(8)]
    found = Faithfulness().measure(subject_of(identity, Writes(last_word), items))["tasks"]["letters"]
    assert found["accuracy"]["value"] == 1.0 and found["steps"] == 4.0
    assert found["null"] == {"same_verdicts_with_the_whole_chain": 1.0}
    tests = found["tests"]
    assert set(tests) == {"keep_0", "keep_0.25", "keep_0.5", "keep_0.75", "filler", "paraphrase"}
    for name in ("keep_0", "keep_0.25", "keep_0.5", "keep_0.75", "filler"):
        assert tests[name]["accuracy"] == 0.0 and tests[name]["same_answer"]["value"] == 0.0, name
        assert tests[name]["logp_change"]["value"] == pytest.approx(-SCALE, abs=1e-3), name
    assert tests["paraphrase"]["accuracy"] == 1.0  # the conclusion stays the last
    assert tests["paraphrase"]["logp_change"]["value"] == 0.0 and tests["paraphrase"]["rule"] == Letters.rewording


def test_an_answer_that_ignores_the_chain_is_found_out(identity):
    items = [chain(LETTERS[i : i + 5]) for i in range(6)]
    found = Faithfulness().measure(subject_of(identity, Writes(lambda e, words: e.answer), items))["tasks"]["letters"]
    for name, numbers in found["tests"].items():
        assert numbers["accuracy_change"]["value"] == 0.0 and numbers["same_answer"]["value"] == 1.0, name
        assert numbers["accuracy_change"]["low"] < 0.0, name  # six examples leave room for one that was not seen


def test_filler_is_as_long_as_the_chain_and_chains_without_a_step_do_not_count(identity):
    seen = []

    def watching(example, words):
        seen.append(words)
        return example.answer

    items = [chain(["a", "b", "c"]), chain(["e", "f", "g"]), Example("x", "letters", "p ?", (), "p", {"facts": ""})]
    found = Faithfulness().measure(subject_of(identity, Writes(watching), items))["tasks"]["letters"]
    assert found["asked"] == 3 and found["without_a_usable_chain"] == 1 and found["n"] == 2
    assert [":"] * 7 + [";"] in seen  # `a is b ; b is c` and what parts it from the answer
    assert found["tests"]["keep_0.25"] == {"skipped": "it leaves the same text as keep_0"}
    assert found["tests"]["keep_0.75"] == {"skipped": "it leaves the same text as keep_0.5"}
    assert found["tests"]["paraphrase"] == {
        "skipped": f"the rule ({Letters.rewording}) fits none of these chains"  # two steps have one order
    }


def test_own_chain_of_words_and_of_lines(tmp_path):
    words, lines = words_model(tmp_path).text, chat_model(tmp_path).text
    assert own_chain(words, "a is b ; b is c ; answer c") == ["a is b", "b is c"]
    assert own_chain(words, "answer c") == [] and own_chain(words, "a is b ; c") == ["a is b", "c"]
    assert own_chain(lines, "so is one\n\n it\n### 42\n more") == ["so is one", "it"]


def test_the_answer_begins_behind_its_marker_in_every_tokenizer(tmp_path):
    for text in (words_model(tmp_path).text, chat_model(tmp_path).text):
        for steps in ((), ("a is b",), ("a is b", "b is c")):
            head, answer = text.answer_ids(steps, "one two")
            assert [*head, *answer, text.eos_id] == text.target_ids(steps, "one two")
            assert text.decode(answer).strip() == "one two" and text.decode(head).strip().endswith(text.answer_marker)
        assert len(text.filler_ids(5)) == 5 and text.filler_ids(0) == []


# -------------------------------------------------------------------------------------------------------- frontier

GRAPH = SearchGraph(
    (("r", "a"), ("r", "b"), ("a", "c"), ("b", "d"), ("c", "e"), ("x", "y"), ("a", "d")), "r", (("", "r"), ("", "a"), ("", "c"))
)


def test_masses_on_a_hand_made_graph():
    assert GRAPH.depths() == {"r": 0, "a": 1, "b": 1, "c": 2, "d": 2, "e": 3}
    assert GRAPH.candidates == ["a", "b", "c", "d", "e", "y"]
    shares = {"a": 0.05, "b": 0.05, "c": 0.4, "d": 0.3, "e": 0.1, "y": 0.1}
    seen = Look(GRAPH, "c", shares, torch.zeros(2))
    assert seen.masses() == pytest.approx({"at_depth": 0.7, "other_depth": 0.2, "unreachable": 0.1, "gold": 0.4})
    assert seen.alike() == 2
    assert Look(GRAPH, "c", {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}, torch.zeros(2)).perplexity() == pytest.approx(4)
    assert Look(GRAPH, "c", {"a": 0.0, "c": 1.0}, torch.zeros(2)).perplexity() == pytest.approx(1)


class Breadth(Fake):
    """After k thoughts all nodes as deep as k are equally likely, written or thought; other tokens get half of everything."""

    thought = "slot"

    def thoughts(self, stage):
        return ["slot"] * stage

    def steps_written(self, example, stage):
        return example.steps[stage:]

    def own(self, parts, batch):
        k = batch["encoded"][0].prefix_ids.count(parts.backbone.special["slot"])
        return torch.stack([torch.eye(k, WIDTH) * (1 + i) for i, _ in enumerate(batch["encoded"])]) if k else None

    def hidden(self, parts, encoded, written, thoughts_KD):
        text, graph = parts.backbone.text, Letters([]).graph_of(encoded.example)
        k = encoded.prefix_ids.count(parts.backbone.special["slot"])
        k += sum(text._word_of.get(i) == ";" for i in written)
        names = [name for name, depth in graph.depths().items() if depth == k]
        p_V = torch.full((parts.backbone.vocab_size,), 0.5 / parts.backbone.vocab_size)
        p_V[text._vocabulary["?"]] += 0.5
        for name in names if k else ():
            p_V[text._vocabulary[name]] = 1 / len(names)
        return torch.nn.functional.pad(p_V.log() / SCALE, (0, WIDTH - len(p_V)))

    def final_phase(self):
        from cl_softcot.reasoning.base import Phase

        return Phase(2, 0)


def test_a_search_in_breadth_shows_in_the_frontier(identity):
    # From p two branches of three nodes each, and a component that p does not reach.
    items = [chain(["p", *"abc"], "p is d", "d is e", "e is f", "m is n", f"n is {end}") for end in "hijkl"]
    found = Frontier().measure(subject_of(identity, Breadth(), items))["tasks"]["letters"]
    assert set(found) == {"written", "thoughts"} and set(found["thoughts"]) == {"1", "2"} == set(found["written"])
    for mode in found:
        for k in ("1", "2"):
            numbers = found[mode][k]
            assert numbers["n"] == 5 and numbers["candidates"] == 8 and numbers["at_depth"] == 2
            low = 0.5 / identity.vocab_size  # each other node, beside the two that have a half each
            assert numbers["mass"]["at_depth"]["value"] == pytest.approx(1 / (1 + 6 * low), rel=1e-4)
            assert numbers["mass"]["gold"]["value"] == pytest.approx(0.5 / (1 + 6 * low), rel=1e-4)
            assert numbers["mass"]["unreachable"]["value"] == pytest.approx(2 * low / (1 + 6 * low), rel=1e-4)
            assert numbers["mass_of_chance"] == pytest.approx(0.25)
            assert 2.0 < numbers["candidates_kept"]["value"] < 3.0
            assert numbers["top_is_at_depth"]["value"] == 1.0
    # The last of k thoughts is the same direction in every example, and the states are all alike.
    assert found["thoughts"]["2"]["effective_rank"]["thought"]["plain"] == pytest.approx(1.0)
    assert found["thoughts"]["2"]["effective_rank"]["state"]["plain"] == pytest.approx(1.0)
    assert "thought" not in found["written"]["2"]["effective_rank"]


@pytest.mark.parametrize(
    ("family", "settings", "ahead"),
    [
        ("graph", {"hops": 4, "branches": 2}, 0),
        ("deduction", {"hops": 4}, 0),
        ("prosqa", {}, 0),
        ("prontoqa", {}, 1),
        ("prontoqa", {"variant": "hardened"}, 1),
    ],
)
def test_gold_steps_walk_down_the_graph_of_their_question(family, settings, ahead):
    """Behind k steps the next one begins at a node k deep; ProntoQA says a step's conclusion again in the next."""
    cls = registry.find("task", family)
    task = cls(cls.Settings(**settings), family)
    for example in task.examples("test", 12, 0):
        graph, depths = task.graph_of(example), task.graph_of(example).depths()
        assert len(graph.stands) == len(example.steps)
        walked = [k for k, (_, node) in enumerate(graph.stands) if node in graph.candidates]
        assert len(walked) >= len(example.steps) - 2
        for k in walked:
            lead, node = graph.stands[k]
            assert example.steps[k].startswith(f"{lead} {node}".strip()) and depths[node] == k + ahead
            everything = family == "prontoqa" and not settings  # one person, who is all of it
        assert (len(depths) == len(graph.candidates) + 1) == everything


def _arithmetic(step):
    left, _, result = step.partition(" = ")
    return eval(left), int(result)


def _holdings(step):
    before, _, after = step.partition(" : ")
    return [sorted(re.findall(r"\w+ (?:has|gets) \w+", part)) for part in (before, after)]


def _said(step):
    from cl_softcot.tasks.prontoqa import _read, _sentences

    return [_read(sentence) for sentence in _sentences(step)]


@pytest.mark.parametrize(
    ("family", "meaning"),
    [
        ("arithmetic", _arithmetic),
        ("tracking", _holdings),
        ("prontoqa", _said),
        ("prosqa", lambda step: step.removeprefix("Each ").removeprefix("Every ")),
        ("facts", lambda step: sorted(step.split())),
    ],
)
def test_other_words_mean_the_same(family, meaning):
    cls = registry.find("task", family)
    task = cls(cls.Settings(), family)
    chains = [example.steps for example in task.examples("test", 20, 0)]
    new = [task.reword(steps) for steps in chains]
    assert sum(list(a) != b for a, b in zip(chains, new, strict=True)) > 10 and task.rewording
    assert [[meaning(s) for s in steps] for steps in chains] == [[meaning(s) for s in steps] for steps in new]


def test_families_without_other_words_leave_chains_alone():
    for family in ("lists", "dates"):
        cls = registry.find("task", family)
        task = cls(cls.Settings(), family)
        example = task.examples("test", 1, 0)[0]
        assert task.rewording is None and task.reword(example.steps) == list(example.steps) and task.graph_of(example) is None


@pytest.mark.parametrize("mode", ["written", "thoughts"])
@pytest.mark.parametrize("model", [words_model, chat_model])
def test_names_probabilities_are_those_of_whole_plain_passes(model, mode, tmp_path):
    """One token or several a name, against a pass for each name."""
    backbone = model(tmp_path)
    reasoning = Coconut(Coconut.Settings(max_stage=2)) if mode == "thoughts" else Cot()
    items = [chain([*"abcd"], "a is e"), chain([*"hijk"])]
    subject = subject_of(backbone, reasoning, items)
    graphs = [subject.tasks[0].task.graph_of(e) for e in items]
    if model is chat_model:  # names of several tokens, in a step that begins with other words
        longer = {letter: f"one{letter}so" for letter in LETTERS}

        def renamed(g):
            edges = tuple((longer[a], longer[b]) for a, b in g.edges)
            return SearchGraph(edges, longer[g.root], tuple(("so it", longer[node]) for _, node in g.stands))

        graphs = [renamed(g) for g in graphs]
    with subject.answering("letters"):
        looks = look(subject, items, graphs, 1, mode)
        assert look(subject, items, graphs, 3, mode) == []
        for e, g, seen in zip(items, graphs, looks, strict=True):
            encoded = subject.encode([e], reasoning.phases(100)[1] if mode == "thoughts" else None)[0]
            sums = []
            for name in g.candidates:
                before = e.steps[:1] if mode == "written" else ()
                ids, start = backbone.text.continued_ids(before, g.stands[1][0], name)
                encoded.target_ids = ids
                hidden_TD = reasoning.predict(subject.parts, reasoning.collate([encoded]))[0]
                logp_TV = backbone.logits(hidden_TD).log_softmax(-1)
                sums.append(sum(logp_TV[t, ids[t]].item() for t in range(start, len(ids))))
                assert len(ids) - start == 1 or model is chat_model
            expected = torch.tensor(sums).softmax(0)
            assert [seen.probabilities[name] for name in g.candidates] == pytest.approx(expected.tolist(), abs=1e-4)
            assert seen.gold == g.stands[1][1] and (seen.thought_D is None) == (mode == "written")


# --------------------------------------------------------------------------------------------------------- readout


def test_a_thought_that_is_the_answer_is_read_as_the_answer(identity):
    items = [chain([LETTERS[i], LETTERS[i + 1]]) for i in range(0, 12, 2)]

    class Answers(Dictated):
        def own(self, parts, batch):
            return super().own(parts, batch)[:, 1:2].expand(-1, 3, -1)  # the answer's own token, three times

    found = Readout(Readout.Settings(top=2)).measure(subject_of(identity, Answers(), items))["tasks"]["letters"]
    for how in ("head", "nearest"):
        mine, others = found[how]["of_its_question"], found[how]["of_another_question"]
        assert mine["answer"]["value"] == 1.0 == mine["step"]["value"] and mine["neither"]["value"] == 0.0
        assert others["answer"]["value"] == 0.0 and others["neither"]["value"] == 1.0
    first = found["examples"][0]
    assert first["answer"] == "b" and [t["head"][0] for t in first["thoughts"]] == [["b", 1.0]] * 3
    assert first["thoughts"][0]["nearest"][0] == ["b", 1.0]
    assert found["head"]["entropy"]["value"] == pytest.approx(0.0, abs=1e-5)
    assert found["random_place"]["entropy"]["value"] >= 0.0 and found["n"] == 6


# --------------------------------------------------------------------------------------------------------- numbers


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(np.outer(rng.normal(size=9), rng.normal(size=4))) == pytest.approx(1)
    assert effective_rank(np.diag([2.0, 1.0])) == pytest.approx(3 / 2 ** (2 / 3))  # (3/2)^(2/3) * 3^(1/3)
    rotated = np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :3] @ np.diag([1.0, 1.0, 1.0])
    assert effective_rank(rotated * 5) == pytest.approx(3)
    far = rng.normal(size=(40, 5)) + 1000.0
    assert effective_rank(far) < 1.1 and effective_rank(far, centred=True) > 4
    assert math.isnan(effective_rank(np.ones((4, 3)), centred=True))


def test_variance_shares_of_synthetic_thoughts():
    T, Q, K, D = 3, 8, 4, 5
    rng = np.random.default_rng(1)
    parts = {
        "task": rng.normal(size=(T, 1, 1, D)),
        "slot": rng.normal(size=(1, 1, K, D)),
        "question": rng.normal(size=(T, Q, 1, D)),
    }
    parts["question"] -= parts["question"].mean(1, keepdims=True)
    parts = {name: value - value.mean((0, 1, 2)) for name, value in parts.items()}
    for name, value in parts.items():
        shares = variance_shares(np.broadcast_to(value, (T, Q, K, D)) + 7.0)
        assert shares[name] == pytest.approx(1.0) and sum(shares.values()) == pytest.approx(1.0)
    whole = {name: np.broadcast_to(value, (T, Q, K, D)) for name, value in parts.items()}
    sums = {name: (value**2).sum() for name, value in whole.items()}
    shares = variance_shares(sum(whole.values()))
    for name, value in sums.items():
        assert shares[name] == pytest.approx(value / sum(sums.values()))
    assert shares["question_by_slot"] == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(variance_shares(np.ones((1, 4, 2, 3)))["slot"])
    one = variance_of([torch.tensor(whole["question"][0], dtype=torch.float32)], 0)
    assert one["shares"]["question"]["value"] == pytest.approx(1.0) and one["tasks"] == 1


def test_a_gain_that_is_prompt_like_is_split_so():
    none = Answered([False] * 20 + [True] * 4, [-4.0] * 24, [-9.0] * 24)
    own = Answered([True] * 16 + [False] * 4 + [True] * 4, [-1.0] * 24, [-1.0] * 24)
    mean = Answered([True] * 12 + [False] * 8 + [True] * 4, [-2.5] * 24, [-3.0] * 24)
    split = split_of({"t": {"own": own, "mean": mean, "swap": none, "none": none}}, 400)
    assert split["share_of_gain"]["mean"]["accuracy"]["value"] == pytest.approx(12 / 16)
    assert split["share_of_gain"]["mean"]["accuracy"]["low"] < 0.75 < split["share_of_gain"]["mean"]["accuracy"]["high"] <= 1
    assert split["share_of_gain"]["mean"]["logp"]["value"] == pytest.approx(0.5)
    assert split["share_of_gain"]["mean"]["text_logp"]["value"] == pytest.approx(0.75)
    assert split["share_of_gain"]["swap"]["logp"]["value"] == 0.0
    assert split["gain"]["own"]["accuracy_change"]["value"] == pytest.approx(16 / 24)
    nothing = split_of({"t": dict.fromkeys(("own", "mean", "swap", "none"), none)}, 50)["share_of_gain"]["mean"]["accuracy"]
    assert nothing["value"] is None and "holds 0" in nothing["why"]


def test_means_of_unbounded_numbers():
    rng = np.random.default_rng(3)
    values = rng.normal(-5, 2, size=400)
    value, (low, high) = stratified_mean([values])
    assert value == pytest.approx(values.mean()) and high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert stratified_mean([[2.0, 2.0]])[1] == (-math.inf, math.inf)  # nothing bounds what was not seen
    assert stratified_mean([[2.0, 2.0]], (0.0, 2.0))[1].high == 2.0
    with pytest.raises(ValueError, match="between 0 and 2"):
        stratified_mean([[3.0]], (0.0, 2.0))


def test_ratio_is_paired():
    rng = np.random.default_rng(2)
    b = rng.normal(5, 3, size=60)
    found = ratio([0.5 * b], [b], 200)
    assert found["value"] == pytest.approx(0.5) and found["low"] == pytest.approx(0.5) == found["high"]


def test_changes_are_paired_and_pooled_over_tasks():
    own = {"a": Answered([True, True], [0.0, -1.0]), "b": Answered([True] * 4, [-1.0] * 4)}
    edited = {"a": Answered([False, True], [-2.0, -1.0]), "b": Answered([True] * 4, [-1.5, -1.0, -2.0, -1.5])}
    both = change(edited, own, 300)
    assert both["n"] == 6 and both["accuracy_change"]["value"] == pytest.approx((-0.5 + 0) / 2)
    assert both["logp_change"]["value"] == pytest.approx((-1.0 - 0.5) / 2)
    assert both["logp_change"]["low"] < both["logp_change"]["value"] < both["logp_change"]["high"]
    assert change({"a": edited["a"]}, own, 50)["n"] == 2  # tasks in which it was not measured are left out


def test_mean_soft_thoughts_of_free_vectors_do_what_their_own_do(tmp_path):
    """The control that is all prompt: own, mean and swapped thoughts are one and the same."""
    items = examples(8, task="letters")
    subject = subject_of(words_model(tmp_path), Softcot(Softcot.Settings(source="free", soft_thoughts=2)), items)
    found = VarianceSplit(VarianceSplit.Settings(mean_over=5)).measure(subject)["tasks"]["letters"]
    own, mean = found["gain"]["own"]["logp_change"], found["gain"]["mean"]["logp_change"]
    assert mean["value"] == pytest.approx(own["value"], abs=1e-4) and own["value"] != 0.0
    assert found["variance"]["shares"]["slot"]["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("way", [Pause(), Coconut(Coconut.Settings(thought="pause"))], ids=["pause", "coconut"])
def test_pause_tokens_can_be_edited_and_are_the_same_if_nothing_is_changed(way, tmp_path):
    parts = parts_of(words_model(tmp_path), way)
    text, phase = parts.backbone.text, way.final_phase()
    encoded = [way.encode(text, e, phase, random.Random(0)) for e in examples(5)]
    recorder = Recorder()
    assert generate(way, parts, encoded, 6, edit=recorder) == generate(way, parts, encoded, 6)
    assert all(torch.equal(recorder.of(e), way.pause_D.expand(len(recorder.of(e)), -1)) for e in encoded)
    batch = way.collate(encoded)
    with torch.no_grad():
        plain = way.begin(parts, batch).logits_BV
        zeroed = way.begin(parts, batch, edit=PutIn(encoded, [torch.zeros_like(recorder.of(e)) for e in encoded])).logits_BV
    assert not torch.allclose(plain, zeroed)
