"""Trains the embedded models: ``python -m cl_softcot.tiny.pretrain [backbone|assistant] [--out FOLDER]``.

The recipe is in ``recipes.json``; what came of it (recipe, seed, loss curve, scores) is kept beside the weights. Two things
decide: layer 0 starts with previous-token heads, and dense look-ups ('primer') come first; without them in-context look-ups,
and with them graph, deduction and tracking, are not learned in this time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cl_softcot.tiny.pretrain", description=__doc__)
    parser.add_argument("model", choices=["backbone", "assistant"], help="which of the two embedded models")
    parser.add_argument("--out", type=Path, help="folder to write (default: the package's own)")
    parser.add_argument("--steps", type=int, help="fewer optimiser steps than the recipe says, for a try")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipes.json", help="recipe file")
    parser.add_argument("--workers", type=int, default=0, help="data-parallel processes (default: as the recipe says)")
    args = parser.parse_args(argv)
    recipe = json.loads(args.recipe.read_text())[args.model]
    if args.steps:
        recipe["steps"] = args.steps
    recipe["workers"] = args.workers or recipe["workers"]
    out = args.out or HERE
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # busy waiting halves the speed of two workers on two cores

    import torch.multiprocessing as mp

    mean = _SharedMean(recipe["workers"], 1 << 22)
    if recipe["workers"] == 1:
        _worker(0, recipe, args.model, out, mean)
    else:
        mp.spawn(_worker, (recipe, args.model, out, mean), nprocs=recipe["workers"])
    if out == HERE:
        from cl_softcot.models.builtin import write_checksums

        write_checksums(out)
    return 0


def build_tokenizer():
    """Word-level tokenizer with a chat template; the reserved tokens stand last in the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from cl_softcot.tiny.corpus import SPECIALS, vocabulary

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", additional_special_tokens=list(SPECIALS)
    )
    return tokenizer


def build_model(recipe: dict, vocab_size: int):
    """A Llama of the recipe's size whose first layer starts with previous-token heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = recipe["shape"]
    config = LlamaConfig(
        vocab_size=vocab_size, tie_word_embeddings=True, attention_bias=True, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        num_key_value_heads=shape["num_attention_heads"], attn_implementation="eager",
        initializer_range=0.02 * (192 / shape["hidden_size"]) ** 0.5, **shape,
    )  # fmt: skip
    torch.manual_seed(recipe["seed"])
    model = LlamaForCausalLM(config)
    prime_previous_token_heads(model, recipe["previous_token_heads"])
    return model


def prime_previous_token_heads(model, offsets: list[int], strength: float = 5.0) -> None:
    """Head h of layer 0 looks ``offsets[h]`` tokens back: constant key bias, query bias at RoPE's phase for that offset."""
    import torch

    config = model.config
    width = config.hidden_size // config.num_attention_heads
    half = width // 2
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(half).float() / half)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for head, offset in enumerate(offsets):
            rows = slice(head * width, (head + 1) * width)
            phase = offset * frequency
            attention.k_proj.bias[rows] = torch.cat([torch.full((half,), strength), torch.zeros(half)])
            attention.q_proj.bias[rows] = strength * torch.cat([phase.cos(), -phase.sin()])


# ------------------------------------------------------------------------------------------------------- training


def _documents(recipe: dict, tokenizer, name: str, rank: int):
    """Endless batches (ids, targets, weights), bucketed by length. ``progress`` is sent in; the primer fades with it."""
    from cl_softcot.tiny.corpus import Mixture, document, primer

    rng = random.Random(f"{name}|{recipe['seed']}|{rank}")
    order = random.Random(f"{name}|{recipe['seed']}")  # the same in all workers: nobody waits for a longer batch
    mixture = Mixture(**recipe["mixture"])
    vocab = tokenizer.get_vocab()
    user, bot, eos, slot = (vocab[t] for t in ("<user>", "<bot>", "<eos>", "<slot>"))
    size, hints = recipe["batch"] // recipe["workers"], recipe["hints"]
    progress = yield None
    while True:
        p = recipe["primer"] if progress < recipe["primer_until"] else recipe["primer_after"]
        rows = []
        for _ in range(size * 16):
            prompt, response, hint = primer(rng) if rng.random() < p else document(rng, mixture)
            asked = [user, *(vocab[w] for w in prompt.split())]
            answer = [vocab[w] for w in response.split()] + [eos]
            n = rng.randint(1, 8) if hint and rng.random() < hints else 0
            # What a placeholder should make the model think of: the answer, then what the steps arrive at (hint targets).
            thoughts = [vocab[hint[i] if i < len(hint) else hint[0]] for i in range(n)]
            rows.append((asked, [slot] * n, thoughts, [bot], answer))
        rows.sort(key=lambda row: sum(map(len, row)) - len(row[2]))
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        order.shuffle(batches)
        for batch in batches:
            progress = yield _tensors(batch, recipe["prompt_weight"])


def _tensors(batch, prompt_weight: float):
    import torch

    length = max(len(a) + len(s) + len(b) + len(r) for a, s, _, b, r in batch)
    ids, targets = torch.zeros(len(batch), length, dtype=torch.long), torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for i, (asked, slots, thoughts, bot, answer) in enumerate(batch):
        row = asked + slots + bot + answer
        n = len(row)
        ids[i, :n] = torch.tensor(row)
        targets[i, : n - 1] = ids[i, 1:n]
        first, start = len(asked), len(asked) + len(slots)
        weights[i, : first - 1] = prompt_weight
        weights[i, start : n - 1] = 1.0
        if slots:
            targets[i, first:start] = torch.tensor(thoughts)
            weights[i, first:start] = 1.0
    return ids, targets, weights


class _SharedMean:
    """Averages a flat tensor over worker processes through shared memory (gloo's sockets took longer than the model).

    Two buffers take turns, so that one barrier a step is enough; the order of the sum, and so the result, is the same everywhere.
    """

    def __init__(self, workers: int, largest: int):
        import torch
        import torch.multiprocessing as mp

        self.workers, self.turn = workers, 0
        if workers > 1:
            self.buffers = torch.zeros(2, workers, largest).share_memory_()
            self.barrier = mp.get_context("spawn").Barrier(workers)

    def __call__(self, flat, rank: int):
        if self.workers == 1:
            return flat
        self.turn = 1 - self.turn
        part = self.buffers[self.turn, :, : flat.numel()]
        part[rank] = flat
        self.barrier.wait()
        return part.mean(0)


def _worker(rank: int, recipe: dict, name: str, out: Path, mean: _SharedMean) -> None:
    from cl_softcot.machine.torchvision import ensure_torchvision

    ensure_torchvision()
    import torch

    workers = recipe["workers"]
    torch.set_num_threads(1 if workers > 1 else torch.get_num_threads())
    tokenizer = build_tokenizer()
    model = build_model(recipe, len(tokenizer))
    trainer = _Trainer(recipe, model, lambda flat: mean(flat, rank))
    stream = _documents(recipe, tokenizer, name, rank)
    next(stream)
    started, curve, tokens, smooth = time.time(), [], 0, None
    for step in range(recipe["steps"]):
        ids, targets, weights = stream.send(step / recipe["steps"])
        loss = trainer.step(ids, targets, weights, step)
        tokens += ids.numel() * workers
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        done = step + 1
        if rank == 0 and (done % recipe["log_every"] == 0 or done == recipe["steps"]):
            curve.append({"step": done, "tokens": tokens, "loss": round(smooth, 4), "seconds": round(time.time() - started, 1)})
            scores = teacher_forced(trainer.model, tokenizer, 64, private=recipe["mixture"].get("private", False))
            print(f"{name} {curve[-1]} " + " ".join(f"{k}:{v:.2f}" for k, v in scores.items()), flush=True)
        for share in recipe["keep"]:
            if rank == 0 and done == round(share * recipe["steps"]):
                save(trainer.master_model(), tokenizer, out / (name if share == 1 else f"{name}-{round(share * 100)}"))
    if rank == 0:
        record = {"recipe": recipe, "curve": curve, "tokens": tokens, "seconds": round(time.time() - started, 1)}
        record |= {"torch": torch.__version__, "python": sys.version.split()[0]}
        (out / name / "training.json").write_text(json.dumps(record, indent=1) + "\n")


class _Trainer:
    """bf16 compute over fp32 masters; Muon for the matrices, AdamW for the rest; gradients averaged over workers."""

    def __init__(self, recipe: dict, model, mean=lambda flat: flat):
        import torch

        self.recipe, self.mean = recipe, mean
        self.masters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
        self.model = model.to(torch.bfloat16)
        self.parameters = dict(self.model.named_parameters())
        matrices = [p for n, p in self.masters.items() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.masters.items() if p.ndim != 2 or "embed" in n]
        lr = recipe["learning_rate"]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=recipe["weight_decay"], momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
        ]

    def step(self, ids, targets, weights, step: int) -> float:
        import torch
        import torch.nn.functional as F

        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = weights > 0
        logits = self.model.lm_head(hidden[wanted]).float()
        weight = weights[wanted]
        losses = F.cross_entropy(logits, targets[wanted], reduction="none")
        (losses @ weight / weight.sum()).backward()
        self._gradients_to_masters()
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        progress = step / self.recipe["steps"]
        share = min(1, (step + 1) / self.recipe["warmup"]) * min(1, max(0.01, (1 - progress) / self.recipe["decay"]))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.recipe["learning_rate"] * share
            optimiser.step()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])
        full = weight == 1
        return (losses[full].sum() / full.sum()).item()

    def _gradients_to_masters(self) -> None:
        import torch

        flat = self.mean(torch.cat([p.grad.float().reshape(-1) for p in self.parameters.values()]))
        for (name, parameter), part in zip(
            self.parameters.items(), flat.split([p.numel() for p in self.parameters.values()]), strict=True
        ):
            self.masters[name].grad = part.view_as(parameter)
            parameter.grad = None

    def master_model(self):
        """The model in fp32, from the masters."""
        import copy

        import torch

        model = copy.deepcopy(self.model).to(torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.masters[name])
        return model


def teacher_forced(model, tokenizer, n: int, private: bool = False) -> dict[str, float]:
    """Share of validation examples of each family whose every written token is the most probable one (quick to compute); and of
    look-ups in the primer, which come first."""
    import torch

    from cl_softcot.tiny.corpus import ANSWER_MARKER, FAMILIES, INSTRUCTIONS, STEP_SEPARATOR, default_task

    vocab, found = tokenizer.get_vocab(), {}
    jobs = [(family, default_task(family), mode) for family in FAMILIES for mode in ("cot", "direct")]
    if private:
        kind = FAMILIES["facts"]
        jobs += [
            ("private", kind(kind.Settings.model_validate({"store": "private"}), "facts"), mode) for mode in ("cot", "direct")
        ]
    for family, task, mode in jobs:
        rows: list[tuple[list[int], ...]] = []
        for e in task.examples("valid", n, 0):
            response = STEP_SEPARATOR.join([*(e.steps if mode == "cot" else ()), f"{ANSWER_MARKER} {e.answer}"])
            asked = [vocab[w] for w in f"<user> {INSTRUCTIONS[mode]} {e.question}".split()]
            rows.append((asked, [], [], [vocab["<bot>"]], [vocab[w] for w in response.split()] + [vocab["<eos>"]]))
        ids, targets, weights = _tensors(rows, 0.0)
        with torch.no_grad():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            right = (model.lm_head(hidden).argmax(-1) == targets) | (weights == 0)
        found[family if mode == "cot" else f"{family}/direct"] = right.all(1).float().mean().item()
    found["look-ups"] = _look_ups(model, vocab, n)
    return found


def _look_ups(model, vocab: dict[str, int], n: int) -> float:
    """Share of the primer's values that are the most probable word behind their key."""
    import torch

    from cl_softcot.tiny.corpus import primer

    rng = random.Random("look-ups")
    rows: list[tuple[list[int], ...]] = []
    for prompt, response, _ in (primer(rng) for _ in range(n)):
        asked = [vocab["<user>"], *(vocab[w] for w in prompt.split())]
        rows.append((asked, [], [], [vocab["<bot>"]], [vocab[w] for w in response.split()]))
    ids, targets, weights = _tensors(rows, 0.0)
    wanted = ((ids == vocab["is"]) | (ids == vocab["has"])) & (weights > 0)
    with torch.no_grad():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return (model.lm_head(hidden[wanted]).argmax(-1) == targets[wanted]).float().mean().item()


def save(model, tokenizer, folder: Path) -> None:
    """Hub format (config, tokenizer, safetensors) and the marker file."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_marker(folder)


def write_marker(folder: Path) -> None:
    """``cl_softcot.json``: how text is laid out for this model, and which task (by its file) makes each family it knows."""
    from cl_softcot.tiny.corpus import ANSWER_MARKER, FAMILIES, INSTRUCTIONS, STEP_SEPARATOR

    families = {family: kind.__module__.rpartition(".")[2] for family, kind in FAMILIES.items()}
    marker = {"style": "words", "instructions": INSTRUCTIONS, "step_separator": STEP_SEPARATOR, "answer_marker": ANSWER_MARKER}
    marker["families"] = families
    (folder / "cl_softcot.json").write_text(json.dumps(marker, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
