"""The embedded models: found, whole, small, documented; and the recipe that makes them."""

from __future__ import annotations

import json
import shutil

import pytest

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402

from cl_softcot.errors import UserError  # noqa: E402
from cl_softcot.files import sha256_of  # noqa: E402
from cl_softcot.models import builtin  # noqa: E402
from cl_softcot.models.language_model import load_language_model  # noqa: E402
from cl_softcot.tiny import corpus, pretrain, score  # noqa: E402
from cl_softcot.tiny.corpus import FAMILIES, SPECIALS, vocabulary  # noqa: E402

RECIPES = json.loads((builtin.HERE / "recipes.json").read_text())
SCORES = builtin.HERE / "scores.json"
TRAINED = {"tiny": "backbone", "tiny-assistant": "assistant"}


# ------------------------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("name", builtin.MODELS)
def test_each_name_leads_to_a_whole_model(name):
    folder = builtin.resolve(name)
    assert folder.parent == builtin.HERE and (folder / "model.safetensors").is_file()
    model = load_language_model(f"builtin:{name}")
    assert model.tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    assert [model.tokenizer.convert_ids_to_tokens(i) for i in range(len(vocabulary()) - 5, len(vocabulary()))] == list(SPECIALS)
    assert model.special.keys() == {"slot", "latent-start", "latent", "latent-end", "pause"}
    assert all(torch.isfinite(p).all() for p in model.model.parameters())
    recipe = RECIPES["assistant" if "assistant" in name else "backbone"]
    assert model.width == recipe["shape"]["hidden_size"]
    assert model.config.num_hidden_layers == recipe["shape"]["num_hidden_layers"]


def test_the_assistant_is_the_smaller_one_and_the_checkpoints_differ():
    sizes = {name: load_language_model(f"builtin:{name}").model.num_parameters() for name in builtin.MODELS}
    assert sizes["tiny-assistant"] < sizes["tiny"] == sizes["tiny@25"] == sizes["tiny@50"]
    assert len({sha256_of(builtin.resolve(name) / "model.safetensors") for name in builtin.MODELS}) == len(builtin.MODELS)


def test_an_unknown_name_names_the_nearest():
    for call in (builtin.resolve, lambda name: load_language_model(f"builtin:{name}")):
        with pytest.raises(UserError, match="no embedded model 'tiny@5'; did you mean 'tiny@") as error:
            call("tiny@5")
        assert "tiny-assistant" in str(error.value) and "builtin:tiny" in str(error.value)


def test_at_most_14_megabytes_in_all():
    files = [p for folder in builtin.MODELS.values() for p in (builtin.HERE / folder).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 14e6


def test_checksums_cover_every_file():
    covered = json.loads((builtin.HERE / builtin.CHECKSUMS).read_text())
    there = {
        p.relative_to(builtin.HERE).as_posix()
        for m in builtin.MODELS.values()
        for p in (builtin.HERE / m).rglob("*")
        if p.is_file()
    }
    assert set(covered) == there
    assert all(sha256_of(builtin.HERE / file) == expected for file, expected in covered.items())


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The models in a place where they may be damaged."""
    for folder in builtin.MODELS.values():
        shutil.copytree(builtin.HERE / folder, tmp_path / folder)
    shutil.copy(builtin.HERE / builtin.CHECKSUMS, tmp_path)
    monkeypatch.setattr(builtin, "HERE", tmp_path)
    builtin.resolve.cache_clear()
    yield tmp_path
    builtin.resolve.cache_clear()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "cl_softcot.json", "config.json"])
def test_a_damaged_file_is_found(copy, file):
    path = copy / "backbone" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"'tiny' is damaged: backbone/{file} is not the file that was trained") as error:
        load_language_model("builtin:tiny")
    assert "python -m cl_softcot.tiny.pretrain backbone" in str(error.value)
    assert builtin.resolve("tiny@50") == copy / "backbone-50"  # the others are whole


def test_a_missing_file_is_found(copy):
    (copy / "assistant" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="assistant/model.safetensors is missing"):
        builtin.resolve("tiny-assistant")


def test_write_checksums_covers_what_is_there(copy):
    (copy / "backbone" / "training.json").write_text("{}")
    with_change = json.loads((copy / builtin.CHECKSUMS).read_text())
    builtin.write_checksums(copy)
    written = json.loads((copy / builtin.CHECKSUMS).read_text())
    changed = {file for file in written if written[file] != with_change.get(file)}
    assert changed == {"backbone/training.json"}
    builtin.resolve("tiny")


@pytest.mark.parametrize("name", builtin.MODELS)
def test_the_marker_file_says_how_text_is_laid_out(name, tmp_path):
    pretrain.write_marker(tmp_path)
    marker = builtin.resolve(name) / "cl_softcot.json"
    assert marker.read_text() == (tmp_path / "cl_softcot.json").read_text()
    told = json.loads(marker.read_text())
    assert told["style"] == "words" and told["instructions"] == corpus.INSTRUCTIONS
    assert told["families"] == {family: family for family in FAMILIES}


@pytest.mark.parametrize("name", TRAINED.values())
def test_recipe_and_training_record_stand_beside_the_weights(name):
    record = json.loads((builtin.HERE / name / "training.json").read_text())
    assert record["recipe"] == RECIPES[name], "the recipe in recipes.json is not the one that made these weights"
    assert {"curve", "tokens", "seconds", "torch", "python"} <= set(record)
    assert record["curve"][-1]["step"] == RECIPES[name]["steps"] and record["curve"][-1]["tokens"] == record["tokens"]
    losses = [point["loss"] for point in record["curve"]]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hardest_questions_that_are_asked_fit_the_context(family):
    """A prompt of either convention, eight thoughts, and what is to be written."""
    model = load_language_model("builtin:tiny")
    for settings in ({}, score.HARDER[family]):
        for convention in FAMILIES[family].conventions:
            task = FAMILIES[family](FAMILIES[family].Settings(**settings, convention=convention, note=True), family)
            for e in task.examples("test", 60, 0):
                written = model.text.target_ids(e.steps, e.answer)
                assert len(model.text.prompt_ids(e.question, "cot", ["slot"] * 8)) + len(written) <= model.max_length
                assert model.text.decode(written).split() == " ; ".join([*e.steps, f"answer {e.answer}"]).split()


@pytest.mark.slow
def test_the_backbone_reaches_its_scores():
    """Greedy zero-shot CoT, generated and judged: at least .90 on every family."""
    if not SCORES.exists():
        pytest.skip(f"SKIPPED: {SCORES.name} is not there: run python -m cl_softcot.tiny.score")
    rows = json.loads(SCORES.read_text())["backbone"]["cot"]
    assert set(FAMILIES) <= set(rows)
    for family in FAMILIES:
        row = rows[family]
        assert row["accuracy"] >= 0.90, f"{family}: {row}"
        low, high = row["interval"]
        assert low <= row["accuracy"] <= high and row["n"] >= 300


# ------------------------------------------------------------------------------------------------------- the recipe


def small(**changes) -> dict:
    """The backbone's recipe, at a size that trains in seconds."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return RECIPES["backbone"] | {"workers": 1, "batch": 8, "warmup": 3, "steps": 30, "log_every": 15, "shape": shape} | changes


def test_primed_heads_look_one_and_two_tokens_back():
    tokenizer = pretrain.build_tokenizer()
    for recipe in RECIPES.values():
        model = pretrain.build_model(recipe, len(tokenizer)).eval()
        ids = torch.randint(5, len(tokenizer), (4, 120), generator=torch.Generator().manual_seed(0))
        attention_BHTT = model(ids, output_attentions=True).attentions[0]
        at = torch.arange(2, 120)
        for head, offset in enumerate(recipe["previous_token_heads"]):  # random weights disturb a few places
            assert (attention_BHTT[:, head, at].argmax(-1) == at - offset).float().mean() > 0.98
            assert attention_BHTT[:, head, at, at - offset].mean() > 0.85
        other = len(recipe["previous_token_heads"])  # and the rest look anywhere
        assert attention_BHTT[:, other, at, at - 1].mean() < 0.1


def batches(recipe: dict, n: int, tokenizer) -> list:
    stream = pretrain._documents(recipe, tokenizer, "backbone", 0)
    next(stream)
    return [stream.send(0.9) for _ in range(n)]


def test_targets_of_pretraining_batches():
    """Every position predicts the next token, those of the prompt with a small weight; no placeholder is ever written."""
    tokenizer = pretrain.build_tokenizer()
    vocab = tokenizer.get_vocab()
    for ids, targets, weights in batches(small(hints=0.5), 20, tokenizer):
        for row, target, weight in zip(ids.tolist(), targets.tolist(), weights.tolist(), strict=True):
            n = row.index(vocab["<eos>"])
            bot = row.index(vocab["<bot>"])
            slots = [i for i, token in enumerate(row) if token == vocab["<slot>"]]
            first = slots[0] if slots else bot
            assert slots == list(range(first, bot)), "slots stand at the end of the prompt, right before <bot>"
            assert target[bot:n] == row[bot + 1 : n + 1] and weight[bot:n] == [1.0] * (n - bot)
            assert target[: first - 1] == row[1:first] and weight[: first - 1] == pytest.approx([0.1] * (first - 1))
            assert weight[first - 1] == 0 and not any(weight[n:])
            assert all(weight[i] == 1.0 for i in slots)


def test_hint_targets_stand_at_the_slots():
    """A placeholder thinks of the answer, the next ones of what each step arrives at, and then of the answer again."""
    tokenizer = pretrain.build_tokenizer()
    words, seen = tokenizer.convert_ids_to_tokens, 0
    recipe = small(hints=1.0, primer=0.0, primer_after=0.0)
    recipe["mixture"] = recipe["mixture"] | {"direct": 0.0, "recite": 0.0}
    for ids, targets, _ in batches(recipe, 30, tokenizer):
        for row, target in zip(ids, targets, strict=True):
            line = words(row.tolist())
            response = " ".join(line[line.index("<bot>") + 1 : line.index("<eos>")])
            *steps, last = response.split(" ; ")
            answer = last.removeprefix("answer ")
            hint = [answer, *(step.split()[-1] for step in steps)]
            slots = [i for i, word in enumerate(line) if word == "<slot>"]
            thought = words([target[i].item() for i in slots])
            assert 1 <= len(slots) <= 8
            assert thought == (hint + [answer] * 8)[: len(slots)]
            seen += 1
    assert seen == 240


def test_no_hints_no_slots():
    tokenizer = pretrain.build_tokenizer()
    slot = tokenizer.get_vocab()["<slot>"]
    assert not any((ids == slot).any() for ids, _, _ in batches(small(hints=0.0), 10, tokenizer))


def trained(folder, recipe: dict) -> tuple[dict, str]:
    """(training record, checksum of the weights) of a model trained by the command."""
    path = folder / "recipes.json"
    folder.mkdir()
    path.write_text(json.dumps({"backbone": recipe}))
    assert pretrain.main(["backbone", "--out", str(folder), "--recipe", str(path)]) == 0
    return json.loads((folder / "backbone" / "training.json").read_text()), sha256_of(folder / "backbone" / "model.safetensors")


def test_a_short_pretraining_learns_and_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    record, weights = trained(tmp_path / "a", small())
    again, same = trained(tmp_path / "b", small())
    assert weights == same
    assert [p["loss"] for p in record["curve"]] == [p["loss"] for p in again["curve"]]
    assert trained(tmp_path / "c", small(seed=1, steps=3))[1] != weights
    first, last = record["curve"]
    assert last["loss"] < first["loss"] < 6.5  # ln 457 is 6.1
    assert record["recipe"] == small() and last["step"] == 30
    for part in ("backbone", "backbone-25", "backbone-50"):
        model = load_language_model(str(tmp_path / "a" / part))
        assert model.text.style == "words" and model.width == 64
    sums = {sha256_of(tmp_path / "a" / part / "model.safetensors") for part in ("backbone", "backbone-25", "backbone-50")}
    assert len(sums) == 3


def test_fewer_steps_can_be_asked_for(tmp_path, monkeypatch):
    """And whoever trains into the package's own folder gets a model that its checksums know."""
    monkeypatch.setattr(pretrain, "HERE", tmp_path)
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps({"assistant": small(keep=[1])}))
    pretrain.main(["assistant", "--recipe", str(path), "--steps", "2"])
    assert json.loads((tmp_path / "assistant" / "training.json").read_text())["recipe"]["steps"] == 2
    covered = json.loads((tmp_path / builtin.CHECKSUMS).read_text())
    assert set(covered) == {f"assistant/{p.name}" for p in (tmp_path / "assistant").iterdir()}


def test_the_mean_over_workers():
    """Two workers' gradients, averaged through shared memory, step after step."""
    import threading

    mean = pretrain._SharedMean(2, 8)
    mean.barrier = threading.Barrier(2)
    found: dict[int, list] = {0: [], 1: []}

    def work(rank: int) -> None:
        view = object.__new__(pretrain._SharedMean)  # each process counts its own turns
        vars(view).update(vars(mean))
        found[rank] = [view(torch.full((5,), float(10 * step + rank)), rank).clone() for step in range(6)]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    [t.start() for t in threads]
    [t.join(30) for t in threads]
    for a, b, step in zip(found[0], found[1], range(6), strict=True):
        assert torch.equal(a, b) and torch.equal(a, torch.full((5,), 10 * step + 0.5))
