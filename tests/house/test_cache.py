"""Work that is the same for many runs is done once; what is taken from the cache has the bits of computing it again."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from model_fakes import chat_model, examples, gpt2_model, words_model
from run_fakes import assert_same_numbers, result, small

from cl_softcot import cache
from cl_softcot.answering import build
from cl_softcot.answering.policy import BasePolicy
from cl_softcot.cache import Cache, current, parse_size
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.files import _unfinished_name
from cl_softcot.models import frozen_states
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.language_model import LanguageModel
from cl_softcot.reasoning.assist_cot import Hints
from cl_softcot.run import base
from cl_softcot.run.api import run_experiment

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}


@pytest.fixture
def passes(monkeypatch):
    """Every forward pass of every model, by the model's object."""
    made: list[LanguageModel] = []
    real = LanguageModel.run_core

    def counting(self, *args, **kwargs):
        made.append(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "run_core", counting)
    return made


def prompts_of(assistant: LanguageModel, n: int = 100) -> list[list[int]]:
    return [AssistantStates(assistant).prompt_ids(e.question) for e in examples(n)]


def states_of(assistant: LanguageModel, n: int = 4, prompts: list[list[int]] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    states = AssistantStates(assistant, n)
    prompts = prompts or prompts_of(assistant)
    states.register(prompts)
    return states.states(prompts), states.means(prompts)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def files(folder: Path, kind: str = "states") -> list[Path]:
    return sorted((folder / kind).glob("*")) if (folder / kind).exists() else []


# ----------------------------------------------------------------------------------------------- assistants' states


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_states_have_the_same_bits_cold_warm_and_without_a_cache(kind, tmp_path, passes, monkeypatch):
    assistant = MODELS[kind](tmp_path)
    cold = states_of(assistant)
    assert passes and len(files(current().folder)) == 2  # blocks of 64 and of 36
    passes.clear()
    warm = states_of(assistant)
    assert passes == []
    monkeypatch.setenv(cache.PLACE, "off")
    plain = states_of(assistant)
    assert passes and same(cold, warm) and same(cold, plain)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_one_entry_serves_every_number_of_slots(kind, tmp_path, passes):
    assistant = MODELS[kind](tmp_path)
    nine = states_of(assistant, 9)
    passes.clear()
    for n in (1, 4, 6, 9, 12):  # slots are computed four at a time
        slots_BNA, means_BA = states_of(assistant, n)
        assert slots_BNA.shape[1] == n and passes == []
        assert torch.equal(slots_BNA[:, :9], nine[0][:, :n]) and torch.equal(means_BA, nine[1])
    longer = states_of(assistant, 13)
    assert passes and same((longer[0][:, :9], longer[1]), nine)
    passes.clear()
    assert same(states_of(assistant, 16), states_of(assistant, 16)) and passes == []  # replaced by the longer ones
    assert len(files(current().folder)) == 2


def test_half_precision_is_kept_as_it_is(tmp_path, passes):
    words_model(tmp_path)
    assistant = cl_load(tmp_path / "words", "bfloat16")
    cold = states_of(assistant)
    assert cold[0].dtype == torch.float32 and torch.equal(cold[0], cold[0].bfloat16().float())
    passes.clear()
    assert same(cold, states_of(assistant)) and passes == []
    full = states_of(cl_load(tmp_path / "words", "float32"))
    assert passes and not torch.equal(full[0], cold[0])  # never confused with one another


def cl_load(folder: Path, dtype: str) -> LanguageModel:
    from cl_softcot.models.language_model import load_language_model

    return load_language_model(str(folder), dtype)


def test_a_prompt_in_other_company_is_another_entry(tmp_path, passes, monkeypatch):
    """Rounding may depend on the company: another set of prompts must get what it would have computed."""
    assistant = words_model(tmp_path)
    prompts = prompts_of(assistant)
    states_of(assistant, prompts=prompts)
    passes.clear()
    fewer = states_of(assistant, prompts=prompts[:40])
    assert passes
    monkeypatch.setenv(cache.PLACE, "off")
    assert same(fewer, states_of(assistant, prompts=prompts[:40]))


CHANGES = {
    "environment": lambda m, patch: patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8"),
    "code": lambda m, patch: patch.setattr(frozen_states, "_code", lambda: "another"),
    "versions": lambda m, patch: patch.setattr(frozen_states, "_versions", lambda: ["another"]),
    "processor": lambda m, patch: patch.setattr(frozen_states, "_processor", lambda: "another"),
    "threads": lambda m, patch: patch.setattr(torch, "get_num_threads", lambda: 77),
    "exactness": lambda m, patch: patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: "another"),
    "architecture": lambda m, patch: patch.setattr(m.model.config, "rope_theta_of_tests", 1.0, raising=False),
    "attention": lambda m, patch: patch.setattr(m.config, "_attn_implementation", "sdpa"),
    "slot": lambda m, patch: patch.setitem(m.special, "slot", m.special["pause"]),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_whatever_may_move_a_bit_is_part_of_the_key(change, tmp_path, passes, monkeypatch):
    assistant = words_model(tmp_path)
    prompts = prompts_of(assistant, 5)
    states_of(assistant, prompts=prompts)
    CHANGES[change](assistant, monkeypatch)
    passes.clear()
    states_of(assistant, prompts=prompts)
    assert passes


def test_other_weights_are_other_entries_wherever_the_model_lies(tmp_path, passes):
    assistant = words_model(tmp_path, "here")
    prompts = prompts_of(assistant, 5)
    found = states_of(assistant, prompts=prompts)
    there = words_model(tmp_path, "there")
    passes.clear()
    assert same(found, states_of(there, prompts=prompts)) and passes == []
    drawn = states_of(assistant.randomised(0), prompts=prompts)
    assert passes and not torch.equal(drawn[0], found[0])
    passes.clear()
    assert same(drawn, states_of(assistant.randomised(0), prompts=prompts)) and passes == []
    states_of(assistant.randomised(1), prompts=prompts)
    assert passes


def test_prompts_in_chance_company_are_not_kept(tmp_path, passes):
    assistant = words_model(tmp_path)
    AssistantStates(assistant, 4).states(prompts_of(assistant, 5))
    assert passes and files(current().folder) == []


def test_the_context_is_checked_whether_states_are_kept_or_not(tmp_path):
    assistant = words_model(tmp_path, max_length=32)
    prompts = prompts_of(assistant, 5)
    states_of(assistant, 8, prompts)
    with pytest.raises(UserError, match="does not fit"):
        states_of(assistant, 31, prompts)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "header", "huge header"])
def test_a_damaged_entry_is_computed_again_and_mended(damage, tmp_path, passes):
    assistant = words_model(tmp_path)
    found = states_of(assistant)
    path = files(current().folder)[0]
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    broken = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "flipped": bytes(flipped),
        "header": b"\x08" + bytes(7) + b"[[[[[[[[" + data[16:],
        "huge header": b"\xff" * 8 + data[8:],
    }
    path.write_bytes(broken[damage])
    list(current().entries())  # listing does not stumble over it
    passes.clear()
    assert same(found, states_of(assistant)) and passes
    assert path.read_bytes() == data


# ------------------------------------------------------------------------------------------------------------ texts


def test_hints_are_written_once_for_all_runs(tmp_path, passes):
    assistant, items = words_model(tmp_path), examples(100)

    def hints(max_new_tokens: int, items: list) -> list[list[str]]:
        made = Hints(assistant, max_new_tokens)
        made.register(items)
        return [made.lines(e.question) for e in items]

    cold = hints(8, items)
    assert any(cold) and len(files(current().folder, "texts")) == 2
    passes.clear()
    assert hints(8, items) == cold and passes == []
    assert hints(7, items) and passes
    passes.clear()
    assert hints(8, items[:99]) and passes


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_what_a_base_answers_is_kept_with_everything_but_the_text(kind, tmp_path, passes):
    model, items = MODELS[kind](tmp_path), examples(20)
    plain = BasePolicy(model, batch_size=8).generate(items, 10)
    assert files(current().folder, "texts") == []
    cold = BasePolicy(model, batch_size=8, cached=True).generate(items, 10)
    passes.clear()
    warm = BasePolicy(model, batch_size=8, cached=True).generate(items, 10)
    assert plain == cold == warm and passes == []
    for change in ({"batch_size": 7}, {"max_new_tokens": 9}, {"sample_seed": 0}, {"items": items[::-1]}):
        passes.clear()
        other = BasePolicy(model, batch_size=change.pop("batch_size", 8), cached=True)
        other.generate(change.pop("items", items), **{"max_new_tokens": 10, **change})
        assert passes, change
    with torch.no_grad():  # the same object after training: a new policy sees other weights
        model.model.get_input_embeddings().weight.add_(1.0)
    passes.clear()
    BasePolicy(model, batch_size=8, cached=True).generate(items, 10)
    assert passes


def test_states_of_the_base_at_its_own_text_are_kept(tmp_path, passes):
    model, items = words_model(tmp_path), examples(20)
    texts = [g.ids for g in BasePolicy(model).generate(items, 10)]
    texts[3] = []
    plain = BasePolicy(model, batch_size=8).hidden_states(items, texts)
    cold = BasePolicy(model, batch_size=8, cached=True).reference_states(items, texts)
    passes.clear()
    warm = BasePolicy(model, batch_size=8, cached=True).reference_states(items, texts)
    assert passes == [] and same(plain, cold) and same(plain, warm)
    BasePolicy(model, batch_size=8, cached=True).reference_states(items, texts[::-1])
    assert passes


@pytest.mark.parametrize("kind", cache.KINDS)
def test_no_bit_of_an_entry_can_change_unnoticed(kind, tmp_path):
    """Of the header too, which says what the numbers are: their type, shape and place."""
    kept = Cache(tmp_path, 10**9)
    kept.write(kind, KEYS[0], {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}, ABOUT)
    path = kept.path(kind, KEYS[0])
    data = path.read_bytes()
    assert set(kept.read(kind, KEYS[0])) == {"a", "b"}
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << (i % 8)
        path.write_bytes(flipped)
        assert kept.read(kind, KEYS[0]) is None, i
        assert not path.exists(), i  # made again
    for other in (data + b"x", data[:-1], data[:8], b"", data.upper()):
        path.write_bytes(other)
        assert kept.read(kind, KEYS[0]) is None


def test_a_start_sweeps_what_a_killed_writer_left(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.PLACE, str(tmp_path))
    (tmp_path / "states").mkdir()
    process = subprocess.Popen([sys.executable, "-c", "from cl_softcot.files import _unfinished_name as n; print(n('x'))"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    dead = process.communicate()[0].strip().replace(".x.", f".{KEYS[0]}.safetensors.")
    live = _unfinished_name(f"{KEYS[1]}.safetensors")
    for name in (dead, live):
        (tmp_path / "states" / name).write_text("")
    cache._cache.cache_clear()
    current()
    assert [path.name for path in (tmp_path / "states").iterdir()] == [live]


# --------------------------------------------------------------------------------------------------------- whole runs

RUNS = [
    {
        "name": "softcot",
        "reasoning": {"name": "softcot", "soft_thoughts": 6},
        "strategy": "frozen_backbone",
        "per_task": {"routing": "nearest"},
    },
    {"name": "random", "reasoning": {"name": "softcot", "source": "random"}, "strategy": "frozen_backbone"},
    {"name": "hinted", "reasoning": {"name": "assist_cot", "max_new_tokens": 6}, "strategy": "lora"},
]


def run(folder: Path, methods: list[dict]) -> Path:
    folder.mkdir(parents=True)
    path = folder / "experiment.yaml"
    path.write_text(json.dumps(small(methods=methods)))
    config = load_experiment(str(path), [f"output_dir={folder / 'out'}"]).config
    run_experiment(config)
    return folder / "out"


def test_a_run_has_the_same_numbers_cold_warm_and_without_a_cache(tmp_path, monkeypatch, passes):
    cold = run(tmp_path / "cold", RUNS)
    config = load_experiment(str(tmp_path / "cold" / "experiment.yaml")).config
    pristine, assistant = build.load_models(config)
    assert assistant in passes and pristine in passes
    assert any("random weights" in model.name for model in passes)
    before = {path: path.read_bytes() for kind in cache.KINDS for path in files(current().folder, kind)}
    passes.clear()
    warm = run(tmp_path / "warm", RUNS)
    assert assistant not in passes and not any("random weights" in model.name for model in passes)
    assert {path: path.read_bytes() for kind in cache.KINDS for path in files(current().folder, kind)} == before
    monkeypatch.setenv(cache.PLACE, "off")
    plain = run(tmp_path / "off", RUNS)
    for other in (warm, plain):
        assert_same_numbers(other, cold)
        for name in ("base.json", "base_predictions.jsonl", "base_continuations.json"):
            assert (other / "shared" / name).read_bytes() == (cold / "shared" / name).read_bytes()
    spent = {place: result(place, "softcot")["cost"]["assistant_seconds"] for place in (cold, warm, plain)}
    assert 0 < spent[warm] < min(spent[cold], spent[plain])


def test_a_measured_base_is_not_measured_again_in_another_folder(tmp_path, passes):
    config = load_experiment(write(tmp_path, small("base_direct")), [f"output_dir={tmp_path}"]).config
    silent = lambda _message: None  # noqa: E731

    def measure(config, shared: Path) -> None:
        base.measure_base(config, shared, silent)
        tasks = build.make_tasks(config, next(iter(config.orders)))
        build.make_evaluator(config, tasks).load_base(shared)

    measure(config, tmp_path / "one")
    assert passes
    passes.clear()
    measure(config, tmp_path / "two")
    assert passes == []
    fewer = small("base_direct", tasks=small()["tasks"][:1])  # another experiment with some of the same questions
    (tmp_path / "fewer").mkdir()
    config = load_experiment(write(tmp_path / "fewer", fewer), [f"output_dir={tmp_path}"]).config
    measure(config, tmp_path / "three")
    assert passes == []


def write(folder: Path, data: dict) -> str:
    (folder / "experiment.yaml").write_text(json.dumps(data))
    return str(folder / "experiment.yaml")


# ---------------------------------------------------------------------------------------------------------- the folder

KEYS = [cache.key_of(i) for i in range(40)]
ABOUT = {"model": "m", "weights": "abcdef", "items": 3}


def tensors(i: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((250,), float(i))}  # 1,000 bytes


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path):
    kept = Cache(tmp_path, 20_000)
    for i in range(10):
        kept.write("states", KEYS[i], tensors(i), ABOUT)
        os.utime(kept.path("states", KEYS[i]), (i, i))
    assert kept.read("states", KEYS[0])["values"].tolist() == [0.0] * 250  # used: no longer the oldest
    for i in range(10, 40):
        kept.write("states", KEYS[i], tensors(i), ABOUT)
        assert total(tmp_path) <= 20_000 * 1.05 + 1500
    left = {path.stem for path in files(tmp_path)}
    assert 12 <= len(left) <= 19 and KEYS[39] in left and not left & set(KEYS[1:10])


def test_an_entry_above_the_bound_is_not_kept(tmp_path):
    kept = Cache(tmp_path, 900)
    kept.write("states", KEYS[0], tensors(0), ABOUT)
    assert files(tmp_path) == [] and kept.read("states", KEYS[0]) is None


def _hammer(folder: str, seed: int, wrong: multiprocessing.Queue) -> None:
    kept = Cache(Path(folder), 6_000)
    for turn in range(150):
        i = (turn * 7 + seed) % 10
        found = kept.read("states", KEYS[i])
        if found is not None and not torch.equal(found["values"], tensors(i)["values"]):
            wrong.put((seed, turn))
        kept.write("states", KEYS[i], tensors(i), ABOUT)
        if turn % 10 == seed:
            kept.prune(2_000)
    wrong.put(None)


def test_many_processes_read_write_and_delete_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    wrong = context.Queue()
    workers = [context.Process(target=_hammer, args=(str(tmp_path), seed, wrong)) for seed in range(4)]
    for worker in workers:
        worker.start()
    said = [wrong.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert said == [None] * 4 and [worker.exitcode for worker in workers] == [0] * 4
    assert {path.stem for path in files(tmp_path)} <= set(KEYS[:10])  # and no unfinished files


@pytest.mark.parametrize("problem", ["full", "no folder"])
def test_a_run_goes_on_where_nothing_can_be_kept(problem, tmp_path, monkeypatch, passes):
    assistant = words_model(tmp_path)
    if problem == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(cache.PLACE, str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.warns(UserWarning, match="nothing more is cached") as told:
        found = states_of(assistant)
    assert len(told) == 1  # for two blocks
    monkeypatch.undo()
    monkeypatch.setenv(cache.PLACE, "off")
    assert same(found, states_of(assistant))


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def filled(cache_folder):
    kept = Cache(cache_folder, 10**9)
    for i in range(5):
        kept.write("states", KEYS[i], tensors(i), ABOUT | {"items": 64})
        os.utime(kept.path("states", KEYS[i]), (time.time() - 7300 - i,) * 2)
    kept.write("texts", KEYS[0], tensors(0), ABOUT | {"model": "other", "items": 1500})
    (cache_folder / "states" / "thesis.safetensors").write_text("mine")
    (cache_folder / "thesis.tex").write_text("mine")
    return cache_folder


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cache.main(list(arguments))
    return status, *capsys.readouterr()


def test_list_says_what_is_there(filled, capsys):
    status, out, _ = say(capsys, "list")
    head, _, columns, states, texts = out.splitlines()
    size = sum(path.stat().st_size for path in filled.glob("*/*") if len(path.stem) == 64)
    assert status == 0 and head == f"{filled}: {size / 1000:.1f} KB of at most 20.0 GB"
    assert columns.split() == ["kind", "model", "weights", "items", "files", "size", "last", "used"]
    assert states.split()[:5] == ["states", "m", "abcdef", "320", "5"] and states.endswith("2 hours ago")
    assert texts.split()[:5] == ["texts", "other", "abcdef", "1,500", "1"] and texts.endswith("just now")


def test_prune_and_clear_delete_the_oldest_and_nothing_else(filled, capsys):
    size = files(filled)[0].stat().st_size
    status, out, _ = say(capsys, "prune", "--max-size", f"{3 * size}")
    assert (status, out) == (0, f"{filled}: 3 files deleted, {3 * size / 1000:.1f} KB freed\n")
    assert {path.stem for path in files(filled)} == {KEYS[0], KEYS[1], "thesis"}
    assert say(capsys, "prune")[1].endswith("0 files deleted, 0 B freed\n")
    unfinished = filled / "states" / f".{KEYS[7]}.safetensors.12.0123abcd.tmp"
    unfinished.write_text("")
    assert say(capsys, "clear")[0] == 0
    assert {path.name for path in filled.rglob("*") if path.is_file()} == {"thesis.safetensors", "thesis.tex"}
    assert "nothing is cached" in say(capsys, "list")[1]


def test_unfinished_files_go_when_they_have_no_writer_any_more(filled):
    old, new = (filled / "states" / f".{KEYS[7]}.safetensors.{pid}.0123abcd.tmp" for pid in (1, 2))
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    Cache(filled, 10**9).prune(10**9)
    assert new.exists() and not old.exists()


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        ({"CL_SOFTCOT_CACHE": "off"}, ["list"], ["switched off", "Unset CL_SOFTCOT_CACHE"]),
        ({"CL_SOFTCOT_CACHE_SIZE": "lots"}, ["list"], ["CL_SOFTCOT_CACHE_SIZE", "'lots' is no size", "5GB"]),
        ({}, ["prune", "--max-size", "-1GB"], ["--max-size", "is no size"]),
        ({"CL_SOFTCOT_CACHE": __file__}, ["clear"], ["not a folder", __file__]),
    ],
)
def test_bad_input_is_one_clear_error(variables, arguments, words, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # as one word, since argparse takes a leading minus for an option
    arguments = [f"{arguments[0]}", f"{arguments[1]}={arguments[2]}"] if len(arguments) == 3 else arguments
    status, out, err = say(capsys, *arguments)
    assert status == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err
    assert all(word in err for word in words), err


def test_sizes():
    sizes = {"5GB": 5 * 10**9, "1.5 tb": 15 * 10**11, "200kb": 200_000, "17": 17, "0": 0, "3B": 3}
    assert {text: parse_size(text, "x") for text in sizes} == sizes
    for text in ("", "GB", "5 G", "1e9", "5GB!", "nan"):
        with pytest.raises(UserError, match="is no size"):
            parse_size(text, "x")


def test_the_place_is_the_users_unless_told(monkeypatch):
    monkeypatch.delenv(cache.PLACE)
    assert current().folder == Path.home() / ".cache" / "cl_softcot" and current().limit == 20 * 10**9
    monkeypatch.setenv(cache.PLACE, "~/elsewhere")
    monkeypatch.setenv(cache.SIZE, "3GB")
    assert current().folder == Path.home() / "elsewhere" and current().limit == 3 * 10**9
    monkeypatch.setenv(cache.PLACE, "OFF")
    assert current() is None
