"""KL by hand on small vocabularies, and end to end on a tiny model against a plain full softmax."""

import copy
import math

import pytest
import torch

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from cl_softcot.answering.policy import Policy  # noqa: E402
from cl_softcot.metrics.drift import DriftReference, drift, kl_from_hidden, kl_from_logits  # noqa: E402
from cl_softcot.models.writing import Generation  # noqa: E402

LN2, LN3 = math.log(2), math.log(3)


def logits(*rows, shift=0.0):
    return torch.tensor(rows, dtype=torch.float64).log() + shift


def both(base, model, shared=None):
    return [kl.tolist() for kl in kl_from_logits(base, model, shared)]


def test_two_tokens_by_hand_and_the_directions_differ():
    # p = (1/2, 1/2), q = (1/4, 3/4)
    forward, reverse = both(logits([0.5, 0.5]), logits([0.25, 0.75]))
    assert forward == pytest.approx([0.5 * LN2 + 0.5 * math.log(2 / 3)])  # 0.1438
    assert reverse == pytest.approx([0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)])  # 0.1308
    assert forward[0] > reverse[0] + 0.01
    assert both(logits([0.25, 0.75]), logits([0.5, 0.5])) == [reverse, forward]


def test_three_tokens_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/8, 1/8, 3/4)
    forward, reverse = both(logits([0.5, 0.25, 0.25]), logits([0.125, 0.125, 0.75]))
    assert forward == pytest.approx([1.25 * LN2 - 0.25 * LN3])  # 1/2 ln 4 + 1/4 ln 2 + 1/4 ln 1/3 = 0.5918
    assert reverse == pytest.approx([0.75 * LN3 - 0.375 * LN2])  # 1/8 ln 1/4 + 1/8 ln 1/2 + 3/4 ln 3 = 0.5640


def test_every_place_has_its_own_value():
    base, model = logits([0.5, 0.5], [0.9, 0.1]), logits([0.25, 0.75], [0.9, 0.1])
    forward, reverse = both(base, model)
    assert forward[0] > 0.1 and reverse[0] > 0.1
    assert forward[1] == reverse[1] == 0.0


def test_added_tokens_are_left_out_and_the_rest_renormalised():
    expected = both(logits([0.5, 0.25, 0.25]), logits([0.125, 0.125, 0.75]))
    with_added = logits([1 / 16, 1 / 16, 3 / 8, 1 / 2])  # half of it on a token that the base lacks
    assert both(logits([0.5, 0.25, 0.25]), with_added) == [pytest.approx(value) for value in expected]
    assert both(with_added, logits([0.5, 0.25, 0.25]))[0] == pytest.approx(expected[1])


def test_shared_vocabulary_by_ids():
    # over tokens 0 and 2: p = (2/3, 1/3), q = (1/7, 6/7)
    base, model = logits([0.5, 0.25, 0.25]), logits([0.125, 0.125, 0.75])
    expected_forward = 2 / 3 * math.log(14 / 3) + 1 / 3 * math.log(7 / 18)
    expected_reverse = 1 / 7 * math.log(3 / 14) + 6 / 7 * math.log(18 / 7)
    for shared in ([0, 2], torch.tensor([2, 0])):
        forward, reverse = both(base, model, shared)
        assert forward == pytest.approx([expected_forward]) and reverse == pytest.approx([expected_reverse])


def test_logits_need_no_normalising():
    base, model = logits([0.5, 0.25, 0.25]), logits([0.125, 0.125, 0.75])
    assert both(base + 7.0, model - 300.0) == [pytest.approx(value) for value in both(base, model)]


def test_zero_probabilities():
    base, model = logits([0.5, 0.5, 0.0]), logits([0.25, 0.25, 0.5])
    forward, reverse = both(base, model)
    assert forward == pytest.approx([LN2])  # the base's zero adds nothing
    assert reverse == [math.inf]
    assert both(base, base) == [[0.0], [0.0]]


def test_small_divergences_keep_their_digits():
    delta = 1e-5  # KL((1/2, 1/2) || (1/2 + d, 1/2 - d)) = -1/2 ln(1 - 4d²) = 2d² + ...
    forward, _ = both(logits([0.5, 0.5]), logits([0.5 + delta, 0.5 - delta]))
    assert forward == pytest.approx([2 * delta**2], rel=1e-4)


def test_identical_logits_are_exactly_zero_and_none_is_negative():
    torch.manual_seed(0)
    rows = torch.randn(500, 97)
    assert both(rows, rows.clone()) == [[0.0] * 500] * 2
    near = kl_from_logits(rows, rows + 1e-9 * torch.randn(500, 97))
    assert (near.forward_kl >= 0).all() and (near.reverse_kl >= 0).all()


def test_chunks_change_nothing():
    torch.manual_seed(0)
    base_ND, model_NE = torch.randn(23, 8), torch.randn(23, 5)
    head_base, head_model = torch.nn.Linear(8, 11), torch.nn.Linear(5, 13)
    whole = kl_from_hidden(base_ND, head_base, model_NE, head_model, chunk=1000)
    for chunk in (1, 7, 23):
        parts = kl_from_hidden(base_ND, head_base, model_NE, head_model, chunk=chunk)
        for a, b in zip(parts, whole, strict=True):
            assert a.dtype == torch.float64 and a.shape == (23,)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="23 and 22"):
        kl_from_hidden(base_ND, head_base, model_NE[:22], head_model)


# ---- end to end: a tiny random Llama, one example at a time, without padding or cache

V, EOS = 29, 0


def written(ids, **more):
    return Generation(ids, "", len(ids), len(ids), **({"finished": False} | more))


def tiny_llama(seed, vocab=V):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.4,  # far from uniform, so that directions and prompts matter
    )
    return LlamaForCausalLM(config).eval()


class PlainPolicy(Policy):
    """Examples are prompts (lists of ids); ``extra`` ids are put behind each prompt, as a method's own tokens
    are.
    """

    def __init__(self, model, fingerprint=None, extra=()):
        self.model, self.extra = model, list(extra)
        self.calls = []
        self.name = fingerprint

    @property
    def fingerprint(self):
        return self.name

    def prompt(self, example):
        return list(example) + self.extra

    def head(self, hidden_ND):
        return self.model.lm_head(hidden_ND)

    @torch.no_grad()
    def hidden_states(self, examples, continuations):
        self.calls.append(("hidden_states", len(examples)))
        states = []
        for example, ids in zip(examples, continuations, strict=True):
            prompt = self.prompt(example)
            hidden = self.model.model(torch.tensor([prompt + ids])).last_hidden_state[0]
            states.append(hidden[len(prompt) - 1 : len(prompt) - 1 + len(ids)])
        return states

    @torch.no_grad()
    def generate(self, examples, max_new_tokens, sample_seed=None, *, read=None):
        self.calls.append(("generate", sample_seed))
        generator = None if sample_seed is None else torch.Generator().manual_seed(sample_seed)
        answers = []
        for example in examples:
            ids = []
            while len(ids) < max_new_tokens and (not ids or ids[-1] != EOS):
                logits_V = self.model(torch.tensor([self.prompt(example) + ids])).logits[0, -1]
                if generator is None:
                    ids.append(int(logits_V.argmax()))
                else:
                    ids.append(int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator)))
            answers.append(written(ids))
        return answers


PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [12], [13, 14]]


def full_softmax(policy, example, ids):
    """log-probabilities [T, V] at the places that predict ``ids``, from the model's own logits over a whole
    sequence.
    """
    prompt = policy.prompt(example)
    with torch.no_grad():
        logits_TV = policy.model(torch.tensor([prompt + ids])).logits[0].double()
    return logits_TV[len(prompt) - 1 : -1, :V].log_softmax(-1)


def reference_value(weighted, other, examples, texts):
    nats = tokens = 0.0
    for example, ids in zip(examples, texts, strict=True):
        p, q = full_softmax(weighted, example, ids), full_softmax(other, example, ids)
        nats += float((p.exp() * (p - q)).sum())
        tokens += len(ids)
    return nats / tokens


@pytest.mark.parametrize(("vocab", "extra"), [(V, ()), (V + 3, (V, V + 1))])
def test_end_to_end_against_a_plain_full_softmax(vocab, extra):
    base = PlainPolicy(tiny_llama(0), "base")
    policy = PlainPolicy(tiny_llama(1, vocab), "other", extra)
    shared = range(V)
    reference = DriftReference.build("general", base, PROMPTS, max_new_tokens=7)
    options = {"max_new_tokens": 7, "sample_seed": 3, "shared_vocab": list(shared), "chunk": 4}
    values = drift(policy, base, [reference], **options)

    greedy = [answer.ids for answer in base.generate(PROMPTS, 7)]
    assert reference.continuations == greedy
    samples = [answer.ids for answer in policy.generate(PROMPTS, 7, sample_seed=3)]
    samples = [ids[: next((i for i, t in enumerate(ids) if t >= V), len(ids))] for ids in samples]
    if vocab > V:
        assert any(len(ids) < 7 and EOS not in ids for ids in samples)  # cut at a token that is not shared
    expected = reference_value(base, policy, PROMPTS, greedy)
    assert values["forward_kl/general"] == pytest.approx(expected, rel=1e-5)
    written = [(e, ids) for e, ids in zip(PROMPTS, samples, strict=True) if ids]
    expected = reference_value(policy, base, *map(list, zip(*written, strict=True)))
    assert values["reverse_kl/general"] == pytest.approx(expected, rel=1e-5)
    assert values["forward_kl/general"] > 0.1 and values["reverse_kl/general"] > 0.1
    assert values["n_tokens/forward_kl/general"] == sum(map(len, greedy))
    assert values["n_tokens/reverse_kl/general"] == sum(map(len, samples))
    assert values == drift(policy, base, [reference], **options)


def test_the_base_itself_is_exactly_zero_and_costs_nothing():
    base = PlainPolicy(tiny_llama(0), "base")
    reference = DriftReference.build("general", base, PROMPTS, max_new_tokens=5)
    twin = PlainPolicy(copy.deepcopy(base.model), "base")
    for policy in (base, twin):
        policy.calls.clear()
        values = drift(policy, base, [reference], max_new_tokens=5)
        assert values["forward_kl/general"] == values["reverse_kl/general"] == 0.0
        assert values["n_tokens/forward_kl/general"] > 0 and values["n_tokens/reverse_kl/general"] == 0
        assert policy.calls == []


def test_identical_weights_measure_exactly_zero_too():
    base = PlainPolicy(tiny_llama(0))
    reference = DriftReference.build("general", base, PROMPTS, max_new_tokens=5)
    nameless = PlainPolicy(copy.deepcopy(base.model))  # no fingerprint: nothing is taken on trust
    for policy, forced in ((nameless, False), (base, True)):
        values = drift(policy, base, [reference], max_new_tokens=5, measure_identical=forced)
        assert values["forward_kl/general"] == values["reverse_kl/general"] == 0.0
        assert values["n_tokens/reverse_kl/general"] > 0


def test_a_small_change_of_the_weights_drifts_a_little_and_a_larger_one_more():
    base = PlainPolicy(tiny_llama(0), "base")
    reference = DriftReference.build("general", base, PROMPTS, max_new_tokens=5)
    found = []
    for scale in (1e-3, 1e-2, 1e-1):
        model = copy.deepcopy(base.model)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
        found.append(drift(PlainPolicy(model, str(scale)), base, [reference], max_new_tokens=5))
    for direction in ("forward_kl/general", "reverse_kl/general"):
        small, middle, large = (values[direction] for values in found)
        assert 0 < small < middle / 10 and middle < large / 10


class RoutedPolicy(PlainPolicy):
    """Answers prompts that begin with an even id as the base, as a per-task method does with tasks that it
    has not seen.
    """

    def __init__(self, model, base):
        super().__init__(model)
        self.base = base

    def fingerprint_for(self, example):
        return self.base.fingerprint if example[0] % 2 == 0 else "own"

    def hidden_states(self, examples, continuations):
        assert all(example[0] % 2 for example in examples), "prompts answered by the base need no second pass"
        return super().hidden_states(examples, continuations)


def test_prompts_answered_by_the_base_count_with_exactly_zero():
    base = PlainPolicy(tiny_llama(0), "base")
    policy = RoutedPolicy(tiny_llama(1), base)
    own = [prompt for prompt in PROMPTS if prompt[0] % 2]
    assert 0 < len(own) < len(PROMPTS)
    mixed, alone = (DriftReference.build("set", base, prompts, 5) for prompts in (PROMPTS, own))
    of_all = drift(policy, base, [mixed], max_new_tokens=5, directions=["forward_kl"])
    of_own = drift(policy, base, [alone], max_new_tokens=5, directions=["forward_kl"])
    assert set(of_all) == {"forward_kl/set", "n_tokens/forward_kl/set"}
    nats = of_all["forward_kl/set"] * of_all["n_tokens/forward_kl/set"]
    assert nats == pytest.approx(of_own["forward_kl/set"] * of_own["n_tokens/forward_kl/set"], rel=1e-6)
    assert of_all["n_tokens/forward_kl/set"] > of_own["n_tokens/forward_kl/set"]
    assert drift(policy, base, [mixed], max_new_tokens=5)["reverse_kl/set"] > 0


class FinishingPolicy(PlainPolicy):
    """Leaves the end-of-text token out of ``ids`` and says ``finished`` instead, as the project's decoding
    does.
    """

    eos_id = EOS

    def generate(self, examples, max_new_tokens, sample_seed=None):
        answers = super().generate(examples, max_new_tokens, sample_seed)
        ended = [answer.ids[-1] == EOS for answer in answers]
        return [written(a.ids[:-1] if end else a.ids, finished=end) for a, end in zip(answers, ended, strict=True)]


def test_the_decision_to_stop_is_measured_too():
    models = tiny_llama(0), tiny_llama(1)
    for model in models:  # end-of-text likely, so that many texts end early
        with torch.no_grad():
            model.lm_head.weight[EOS] = 0
            model.lm_head.weight[EOS] = model.lm_head.weight.abs().mean(0) * 2
    plain = [PlainPolicy(model, str(i)) for i, model in enumerate(models)]
    finishing = [FinishingPolicy(model, str(i)) for i, model in enumerate(models)]
    found = []
    for base, policy in (plain, finishing):
        reference = DriftReference.build("general", base, PROMPTS * 4, 9)
        found.append((reference.continuations, drift(policy, base, [reference], max_new_tokens=9, sample_seed=1)))
    assert found[0] == found[1]
    samples = finishing[1].generate(PROMPTS * 4, 9, sample_seed=1)
    assert any(sample.finished for sample in samples)


def test_several_sets_and_given_continuations():
    base, policy = PlainPolicy(tiny_llama(0), "base"), PlainPolicy(tiny_llama(1), "other")
    given = [[5, 6, 7], [8], [9, 9]]
    sets = [
        DriftReference.build("general", base, PROMPTS[:3], 5, continuations=given),
        DriftReference.build("graph", base, PROMPTS[3:], 5),
    ]
    assert sets[0].continuations == given
    values = drift(policy, base, sets, max_new_tokens=5)
    assert values["n_tokens/forward_kl/general"] == 6
    expected = reference_value(base, policy, PROMPTS[:3], given)
    assert values["forward_kl/general"] == pytest.approx(expected, rel=1e-5)
    assert {"forward_kl/graph", "reverse_kl/graph"} <= set(values)


def test_nothing_written_is_undefined_and_not_zero():
    base, policy = PlainPolicy(tiny_llama(0), "base"), PlainPolicy(tiny_llama(1), "other")
    policy.generate = lambda examples, *_, **__: [written([]) for _ in examples]
    reference = DriftReference.build("general", base, PROMPTS, 5, continuations=[[]] * len(PROMPTS))
    values = drift(policy, base, [reference], max_new_tokens=5)
    assert values["forward_kl/general"] is values["reverse_kl/general"] is None


def test_misuse_is_refused():
    base = PlainPolicy(tiny_llama(0), "base")
    with pytest.raises(ValueError, match="empty"):
        DriftReference.build("general", base, [], 5)
    with pytest.raises(ValueError, match="1 continuations for 5"):
        DriftReference.build("general", base, PROMPTS, 5, continuations=[[1]])
    reference = DriftReference.build("general", base, PROMPTS, 5)
    with pytest.raises(ValueError, match="sideways"):
        drift(base, base, [reference], max_new_tokens=5, directions=["sideways"])
    short = PlainPolicy(tiny_llama(1), "other")
    short.hidden_states = lambda examples, continuations: [torch.zeros(1, 16) for _ in examples]
    with pytest.raises(ValueError, match="one state a continuation token"):
        drift(short, base, [reference], max_new_tokens=5)
