"""Every architecture through every way of thinking and every strategy, as base and as chat model.

The models have random weights, wide enough drawn that answers differ from prompt to prompt.
"""

from __future__ import annotations

import random
import urllib.request

import pytest
import torch
from model_fakes import examples, parts_of
from torch import nn

from cl_softcot import registry
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.metrics.drift import DriftReference, drift
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.running import forward, new_state
from cl_softcot.models.scratch import make_model_folder
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Parts
from cl_softcot.reasoning.cot import Cot

TEXTS = ["a b c d e f g is h ?\nReason step by step, one step per line.\n### one <<1+2=3>>\n"] * 4
STYLES = {"plain": {}, "chat": {"chat_template": "default", "bos": True, "pad": True}}
# A short window, so that these prompts are longer than it; four layers have both kinds where a family mixes them.
_SLIDING = {"layers": 4, "sliding_window": 8}
FAMILIES = {
    "gpt2": {"context": 256},
    "llama": {},
    "mistral": {"layers": 6, "sliding_window": 28},  # its layers together reach back to the question
    "qwen2": {},
    "qwen3": {},
    "gemma2": _SLIDING,
    "gemma3": {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "phi": {},
    "phi3": {},
}
CORE = ("gpt2", "gemma2", "phi")
SLOW = pytest.mark.slow
REASONINGS = {
    "direct": {},
    "cot": {},
    "pause": {"pauses": 3},
    "coconut": {"thoughts_per_step": 1, "max_stage": 2, "curriculum": "none"},
    "softcot": {"soft_thoughts": 3},
}
STRATEGIES = {"zero_shot": {}, "full_finetune": {"learning_rate": 1e-3}, "lora": {"rank": 4}, "frozen_backbone": {}}


def _params(everything=False):
    """Every family in one style, every other one as a chat model; ``everything``: in both, for what one call tests."""
    for i, family in enumerate(FAMILIES):
        own = ("chat" if family != "gpt2" else "plain") if family in CORE else list(STYLES)[i % 2]
        for style in STYLES if everything else [own]:
            yield pytest.param((family, style), id=f"{family}-{style}", marks=[] if family in CORE or everything else [SLOW])


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {}

    def folder(family, style):
        if (family, style) not in made:
            path = tmp_path_factory.mktemp("families") / f"{family}-{style}"
            sizes = {"width": 32, "initializer_range": 0.3, "seed": 5, **FAMILIES[family], **STYLES[style]}
            made[family, style] = make_model_folder(path, family, texts=TEXTS, **sizes)
        return str(made[family, style])

    return folder


@pytest.fixture(params=list(_params()))
def backbone(request, folders):
    return load_language_model(folders(*request.param))


@pytest.fixture(params=list(_params(everything=True)))
def any_backbone(request, folders):
    return load_language_model(folders(*request.param))


def make(kind, name, settings):
    cls = registry.find(kind, name)
    return cls(cls.Settings(**settings))


def built(backbone, reasoning, folders, strategy=None):
    """Ready parts; the assistant is of another family, with another tokenizer and width."""
    assistant = load_language_model(folders("qwen2", "chat" if backbone.text.style == "plain" else "plain"))
    parts = parts_of(backbone, make("reasoning", reasoning, REASONINGS[reasoning]), assistant)
    if strategy is not None:
        strategy = make("strategy", strategy, STRATEGIES[strategy])
        strategy.prepare(parts, 0)
    return parts, strategy


def encode(parts, items):
    reasoning = parts.reasoning
    return [reasoning.encode(parts.backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]


# --------------------------------------------------------------------------------------------- the model as it is


def test_logits_are_the_librarys_own(any_backbone):
    """Through embeddings, core and head by ourselves: scales of embeddings and logits, biases and norms are all in place."""
    backbone = any_backbone
    ids_BT = torch.randint(5, 200, (2, 23), generator=torch.Generator().manual_seed(1))
    expected_BTV = backbone.model(input_ids=ids_BT).logits[..., : backbone.vocab_size]
    state = new_state(backbone, 2)
    found_BTV = backbone.logits(forward(backbone, state, backbone.embed(ids_BT)))
    torch.testing.assert_close(found_BTV, expected_BTV, atol=2e-4, rtol=2e-4)
    assert found_BTV.std() > 0.05


def test_pieces_with_a_cache_and_padding_make_the_whole(any_backbone):
    """Longer than every sliding window; a row of its own must not notice its padding, nor where the pieces end."""
    backbone = any_backbone
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(5, 200, (n,), generator=generator) for n in (9, 21, 30)]
    T = max(map(len, rows))
    ids_BT = torch.stack([torch.cat([torch.zeros(T - len(r), dtype=torch.long), r]) for r in rows])
    mask_BT = torch.tensor([[False] * (T - len(r)) + [True] * len(r) for r in rows])
    with torch.no_grad():
        for room in (None, T):
            state = new_state(backbone, 3, room)
            pieces = [
                forward(backbone, state, backbone.embed(ids_BT[:, a:b]), mask_BT[:, a:b])
                for a, b in ((0, 13), (13, 14), (14, 15), (15, 22), (22, T))
            ]
            hidden_BTD = torch.cat(pieces, 1)
            for row, ids_T in enumerate(rows):
                whole_TD = backbone.model.base_model(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
                torch.testing.assert_close(hidden_BTD[row, T - len(ids_T) :], whole_TD, atol=5e-4, rtol=5e-4)


def test_the_first_layer_reads_what_embed_gives(any_backbone):
    """At the scale that soft thoughts start out at; positions are added by GPT-2 only."""
    backbone = any_backbone
    seen = []
    hook = backbone.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    ids_BT = torch.arange(40, 140)[None]
    forward(backbone, new_state(backbone, 1), backbone.embed(ids_BT))
    hook.remove()
    if backbone.config.model_type != "gpt2":
        torch.testing.assert_close(seen[0], backbone.embed(ids_BT))
    every = torch.arange(backbone.vocab_size)
    assert abs(backbone.embed(every).std() / backbone.embedding_std() - 1) < 0.01


def test_a_core_that_scales_by_itself_is_undone(folders, monkeypatch):
    """As Gemma 2 in transformers 5.0: its forward multiplies inputs_embeds, its embedding does not."""
    new = load_language_model(folders("gemma2", "plain"))
    old = load_language_model(folders("gemma2", "plain"))
    embedding = torch.nn.Embedding.from_pretrained(old.model.get_input_embeddings().weight)
    old.model.set_input_embeddings(embedding)
    core_forward = old.core.forward

    def scaling_forward(inputs_embeds, **kwargs):
        return core_forward(inputs_embeds=inputs_embeds * old.width**0.5, **kwargs)

    monkeypatch.setattr(old.core, "forward", scaling_forward)
    old.__dict__.pop("core_scale", None)
    ids_BT = torch.arange(40, 60)[None]
    torch.testing.assert_close(old.embed(ids_BT), new.embed(ids_BT))
    thoughts_BTD = torch.randn(1, 4, old.width, generator=torch.Generator().manual_seed(0))
    for inputs in (old.embed(ids_BT), thoughts_BTD):
        found = [forward(b, new_state(b, 1), inputs) for b in (old, new)]
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert abs(old.embedding_std() / new.embedding_std() - 1) < 1e-5


# ------------------------------------------------------------------------------------------- thinking and learning


@pytest.mark.parametrize("reasoning", REASONINGS)
def test_answers_do_not_depend_on_their_neighbours(reasoning, backbone, folders):
    parts, _ = built(backbone, reasoning, folders)
    encoded = encode(parts, examples(7))
    together = generate(parts.reasoning, parts, encoded, 10)
    alone = [generate(parts.reasoning, parts, [e], 10)[0] for e in encoded]
    assert [g.ids for g in together] == [g.ids for g in alone]
    assert len({tuple(g.ids) for g in together}) > 1


@pytest.mark.parametrize("reasoning", REASONINGS)
def test_decoding_with_a_cache_is_the_full_forward(reasoning, backbone, folders):
    """Writing the gold answer token by token gives the states that training computes in one call."""
    parts, _ = built(backbone, reasoning, folders)
    batch = parts.reasoning.collate(encode(parts, examples(5)))
    with torch.no_grad():
        expected_BTV = backbone.logits(parts.reasoning.predict(parts, batch))
        T = batch["target_BT"].shape[1]
        state = parts.reasoning.begin(parts, batch, room=T)
        found = [state.logits_BV]
        for t in range(T - 1):
            found.append(parts.reasoning.step(parts, state, batch["target_BT"][:, t]))
    labelled = batch["labels"] != -100
    found_BTV = torch.stack(found, 1)
    torch.testing.assert_close(found_BTV[labelled], expected_BTV[labelled], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("reasoning", "strategy"),
    [
        ("cot", "full_finetune"),
        ("coconut", "full_finetune"),
        ("coconut", "lora"),
        ("direct", "lora"),
        ("pause", "frozen_backbone"),
        ("softcot", "frozen_backbone"),
        ("softcot", "lora"),
    ],
)
def test_learning_lowers_the_loss_and_leaves_frozen_weights_alone(reasoning, strategy, backbone, folders):
    parts, strategy = built(backbone, reasoning, folders, strategy)
    before = backbone.weights_sha256()
    groups = [{**group, "lr": 3e-3 if group["name"] == "backbone" else 3e-2} for group in strategy.trainable(parts)]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    batch = parts.reasoning.collate(encode(parts, examples(4)))
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = parts.reasoning.loss(parts, batch)
        (loss.loss_sum / loss.n_tokens).backward()
        optimiser.step()
        losses.append(loss.loss_sum.item() / loss.n_tokens)
    assert losses[-1] < losses[0] - 0.05, losses
    assert all(t.grad is not None and t.grad.isfinite().all() for t in strategy.tensors(parts).values())
    assert (backbone.weights_sha256() == before) == (not strategy.writes_weights)


def test_drift_is_nothing_before_learning_and_something_after(backbone, folders):
    parts, strategy = built(backbone, "softcot", folders, "frozen_backbone")
    base = BasePolicy(backbone.copy(share_weights=True), batch_size=8)
    reference = DriftReference.build("task", base, examples(4), 8)
    alone = MethodPolicy(parts, strategy, batch_size=8, weights_alone=True)
    nothing = drift(alone, base, [reference], max_new_tokens=8, measure_identical=True)
    assert abs(nothing["forward_kl/task"]) < 1e-8 and abs(nothing["reverse_kl/task"]) < 1e-8
    something = drift(MethodPolicy(parts, strategy, batch_size=8), base, [reference], max_new_tokens=8)
    assert something["forward_kl/task"] > 1e-4 and something["reverse_kl/task"] > 1e-4


def test_saved_weights_come_back(backbone, folders, tmp_path):
    """Trained weights written in the hub's format are read again as the same model."""
    parts, _ = built(backbone, "cot", folders, "full_finetune")
    with torch.no_grad():
        for p in backbone.model.parameters():
            p.mul_(1.01)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    again = load_language_model(str(tmp_path))
    assert again.weights_sha256() == backbone.weights_sha256()
    assert (again.special, again.vocab_size, again.eos_id) == (backbone.special, backbone.vocab_size, backbone.eos_id)
    encoded = encode(parts, examples(3))
    fresh = Parts(again, None, Cot())
    assert [g.ids for g in generate(Cot(), fresh, encoded, 8)] == [g.ids for g in generate(Cot(), parts, encoded, 8)]


# --------------------------------------------------------------------------------------------------- number types


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("reasoning", ["cot", "coconut", "softcot"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_half_precision_thinks_much_the_same(family, reasoning, dtype, folders):
    losses = {}
    for kind in ("float32", dtype):
        backbone = load_language_model(folders(family, "plain"), kind)
        parts, _ = built(backbone, reasoning, folders)
        batch = parts.reasoning.collate(encode(parts, examples(6)))
        with torch.no_grad():
            losses[kind] = parts.reasoning.loss(parts, batch)
        written = generate(parts.reasoning, parts, encode(parts, examples(3)), 4)
        assert all(len(g.ids) + (g.end_id is not None) >= 1 for g in written)
    assert losses[dtype].loss_sum.dtype == torch.float32
    assert abs(losses[dtype].loss_sum / losses["float32"].loss_sum - 1) < 0.1


def test_every_weight_of_a_projector_moves_in_front_of_a_bf16_backbone(folders):
    """In pure bf16 about a third moved at this rate: steps below its resolution are lost."""
    backbone = load_language_model(folders("llama", "chat"), "bfloat16")
    parts, strategy = built(backbone, "softcot", folders, "frozen_backbone")
    tensors = strategy.tensors(parts)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    before = {name: t.detach().clone() for name, t in tensors.items()}
    half = {name: nn.Parameter(t.detach().bfloat16()) for name, t in tensors.items()}  # given the same gradients
    optimiser = torch.optim.AdamW(tensors.values(), lr=2e-5, weight_decay=0.0)
    half_optimiser = torch.optim.AdamW(half.values(), lr=2e-5, weight_decay=0.0)
    encoded = encode(parts, examples(8))
    for step in range(100):
        batch = parts.reasoning.collate(encoded[step % 4 : step % 4 + 4])
        optimiser.zero_grad()
        loss = parts.reasoning.loss(parts, batch)
        (loss.loss_sum / loss.n_tokens).backward()
        optimiser.step()
        for name, t in half.items():
            t.grad = tensors[name].grad.bfloat16()
        half_optimiser.step()
    moved = sum(int((t != before[name]).sum()) for name, t in tensors.items())
    assert moved == sum(t.numel() for t in tensors.values())
    assert sum(int((t != before[name].bfloat16()).sum()) for name, t in half.items()) < 0.6 * moved


@pytest.mark.parametrize("reasoning", REASONINGS)
@pytest.mark.parametrize("strategy", ["full_finetune", "lora"])
def test_all_that_is_trained_is_fp32(reasoning, strategy, folders):
    backbone = load_language_model(folders("gpt2", "plain"), "bfloat16")
    parts, strategy = built(backbone, reasoning, folders, strategy)
    assert {t.dtype for t in strategy.tensors(parts).values()} == {torch.float32}


# ------------------------------------------------------------------------------------- less memory, other machines


@pytest.mark.parametrize("reasoning", ["cot", "coconut", "softcot"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_computing_activations_again_changes_no_gradient(family, reasoning, folders):
    gradients, kept = {}, {}
    for again in (False, True):
        backbone = load_language_model(folders(family, "plain"), gradient_checkpointing=again)
        parts, strategy = built(backbone, reasoning, folders, "lora")
        with torch.no_grad():
            for name, tensor in strategy.tensors(parts).items():
                if "lora_B" in name:
                    tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        batch = parts.reasoning.collate(encode(parts, examples(5)))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            loss = parts.reasoning.loss(parts, batch)
        loss.loss_sum.backward()
        kept[again] = sum(sizes)
        gradients[again] = {name: t.grad for name, t in strategy.tensors(parts).items()}
        assert not any("forward" in vars(layer) for layer in backbone.layers)
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, atol=1e-5, rtol=1e-4)
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_backbones_learn_with_adapters_and_projectors(bits, folders, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'cl-softcot[quantization]'")
    wide = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, width=128, initializer_range=0.2)  # blocks are 64 wide
    full = load_language_model(str(wide))
    for reasoning, name in (("cot", "lora"), ("softcot", "frozen_backbone")):
        backbone = load_language_model(str(wide), quantization=bits, device="cpu")
        stored = {p.dtype for p in backbone.layers.parameters()}
        assert (torch.int8 if bits == "8bit" else torch.uint8) in stored
        parts, strategy = built(backbone.copy(share_weights=True), reasoning, folders, name)
        before = backbone.weights_sha256()
        batch = parts.reasoning.collate(encode(parts, examples(4)))
        optimiser = torch.optim.AdamW(strategy.tensors(parts).values(), lr=1e-2)
        losses = []
        for _ in range(6):
            optimiser.zero_grad()
            loss = parts.reasoning.loss(parts, batch)
            (loss.loss_sum / loss.n_tokens).backward()
            optimiser.step()
            losses.append(loss.loss_sum.item() / loss.n_tokens)
        if reasoning == "cot":
            with torch.no_grad():
                whole = Cot().loss(Parts(full, None, Cot()), batch)
            assert abs(losses[0] / (whole.loss_sum.item() / whole.n_tokens) - 1) < 0.2
        assert losses[-1] < losses[0]
        with strategy.as_used(parts):
            assert len(generate(parts.reasoning, parts, encode(parts, examples(2)), 3)) == 2
        assert backbone.weights_sha256() == parts.backbone.weights_sha256() == before
    with pytest.raises(UserError, match="quantized"):
        built(backbone, "cot", folders, "full_finetune")
    drawn = backbone.randomised(0)
    assert not drawn.quantized and {p.dtype for p in drawn.model.parameters()} == {torch.float32}


def test_quantization_without_its_package_names_the_command(folders, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes") as error:
        load_language_model(folders("llama", "plain"), quantization="4bit")
    assert "pip install" in error.value.fix


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("reasoning", REASONINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_computes_what_the_cpu_does(reasoning, dtype, folders):
    losses = []
    for device in ("cpu", None):
        backbone = load_language_model(folders("llama", "chat"), dtype, device=device)
        parts, strategy = built(backbone, reasoning, folders, "full_finetune")
        batch = parts.reasoning.collate(encode(parts, examples(5))).to(backbone.device)
        loss = parts.reasoning.loss(parts, batch)
        loss.loss_sum.backward()
        losses.append(loss.loss_sum.item())
        generate(parts.reasoning, parts, encode(parts, examples(3)), 4)
    assert backbone.device.type == "cuda"
    assert abs(losses[1] / losses[0] - 1) < (1e-3 if dtype == "float32" else 0.05)


def _hub_answers():
    try:
        urllib.request.urlopen("https://huggingface.co", timeout=3)
    except OSError:
        return False
    return True


@pytest.mark.hub
@pytest.mark.parametrize("spec", ["hf-internal-testing/tiny-random-LlamaForCausalLM", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_models_of_the_hub_answer(spec, folders):
    if not _hub_answers():
        pytest.skip("the model hub cannot be reached")
    backbone = load_language_model(spec)
    for reasoning in REASONINGS:
        parts, _ = built(backbone, reasoning, folders)
        written = generate(parts.reasoning, parts, encode(parts, examples(3)), 4)
        assert len(written) == 3
