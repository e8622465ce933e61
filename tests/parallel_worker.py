"""What several processes say to each other, checked from inside: ``torchrun --nproc_per_node 2 parallel_worker.py OUT``.

Every process writes OUT/<rank>.json: what each check found, by name.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from learning_fakes import VOCABULARY, Train, make_learner
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from cl_softcot.errors import UserError
from cl_softcot.machine import processes


def deals() -> dict[str, Any]:
    done: list[int] = []

    def work(piece: int) -> list[float]:
        done.append(piece)
        return [piece + 0.5]

    return {"found": processes.dealt([10, 11, 12, 13, 14], work), "done": done}


def hears_errors() -> list[str]:
    said = []
    for error in (UserError("no disk", where="here", fix="buy one"), KeyError("k")):

        def fail(error: Exception = error) -> None:
            raise error

        try:
            processes.from_main(fail)
        except Exception as caught:
            said.append(f"{type(caught).__name__}|{caught}")
    said.append(processes.from_main(lambda: f"I am {processes.rank()}"))
    return said


def compares() -> str:
    processes.require_same("the cats", "grey")
    try:
        processes.require_same("the cats", f"{processes.rank()}")
    except UserError as error:
        return str(error)
    return "nothing"


def sums_gradients() -> dict[str, Any]:
    """Five parameters of two types in buckets of 8 numbers; one has a gradient in one process only, one in none."""
    shapes = [(3,), (2, 2), (9,), (2,), (2,)]
    dtypes = [torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float32]
    parameters = [nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes, strict=True)]
    for i, p in enumerate(parameters[:4]):
        if i != 1 or processes.is_main():
            p.grad = torch.full_like(p, (i + 1) * (1 + processes.rank()))
    processes._BUCKET = 8
    processes.sum_gradients(parameters)
    return {"gradients": [None if p.grad is None else p.grad.float().tolist() for p in parameters]}


def sends_tensors() -> bool:
    sent = {
        "scalar": torch.tensor(7.25),
        "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "long": torch.tensor([[2**40]]),
        "transposed": torch.arange(6.0).view(2, 3).t(),
    }
    got = processes.tensors_from_main(sent if processes.is_main() else None)
    same = [torch.equal(got[name], sent[name]) and got[name].dtype == sent[name].dtype for name in sorted(sent)]
    return all(same) and set(got) == set(sent)


def draws() -> dict[str, Any]:
    torch.manual_seed(5)
    before = torch.rand(2).tolist()
    with processes.own_random_numbers("key"):
        inside = torch.rand(2).tolist()
    after = torch.rand(2).tolist()
    with processes.own_random_numbers("key"):
        again = torch.rand(2).tolist()
    torch.manual_seed(5)
    torch.rand(2)
    return {"before": before, "inside": inside, "again": again, "common": after == torch.rand(2).tolist()}


def fails() -> list[bool]:
    together = processes.failed_together(30.0)
    alone = processes.failed_together(0.5) if processes.is_main() else None
    processes.gathered_from_all(None)
    processes._world.failures = 10
    return [together, alone]


class Backbone:
    """As much of ``LanguageModel`` as sharding needs."""

    compute_dtype = torch.float32

    def __init__(self, tied: bool):
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
        )  # fmt: skip
        torch.manual_seed(1)
        self.model = LlamaForCausalLM(config)
        self.core, self.layers, self.device = self.model.model, self.model.model.layers, torch.device("cpu")


def loss_of(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """In three pieces over one cache, a hidden state fed back in between, as Coconut does."""
    cache = DynamicCache(config=model.config)
    embed, core = model.get_input_embeddings(), model.model
    hidden_BTD = core(inputs_embeds=embed(ids_BT[:, :4]), past_key_values=cache, use_cache=True).last_hidden_state
    for _ in range(2):
        hidden_BTD = core(inputs_embeds=hidden_BTD[:, -1:], past_key_values=cache, use_cache=True).last_hidden_state
    hidden_BTD = core(inputs_embeds=embed(ids_BT[:, 4:-1]), past_key_values=cache, use_cache=True).last_hidden_state
    logits = model.get_output_embeddings()(hidden_BTD)
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids_BT[:, 5:], reduction="sum")


def shards(tied: bool) -> dict[str, Any]:
    """Three clipped steps of AdamW on four rows, in one piece and split over the processes."""
    backbone = Backbone(tied)
    alone = copy.deepcopy(backbone.model)
    processes.shard(backbone)
    split = backbone.model
    ids_BT = torch.randint(0, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(3))
    found: dict[str, Any] = {"norms": [], "loss_gaps": []}
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (alone, split)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        whole_loss = loss_of(alone, ids_BT)
        whole_loss.backward()
        own_loss = loss_of(split, ids_BT[processes.own_rows(4)])
        own_loss.backward()
        processes.reshard(split)
        processes.sum_gradients(list(split.parameters()))
        norms = [
            float(nn.utils.clip_grad_norm_(alone.parameters(), 0.5)),
            float(processes.clip_gradients([*split.parameters()], 0.5)),
        ]
        found["norms"].append(norms)
        found["loss_gaps"].append(abs(float(whole_loss.detach() - processes.sum_over_all(own_loss))))
        for optimizer in optimizers:
            optimizer.step()
    named = dict(split.named_parameters())
    gaps = [float((processes.whole(named[n].detach()) - p).abs().max()) for n, p in alone.named_parameters()]
    found["weight_gap"] = max(gaps)
    found["sharded"] = sorted(n for n, p in named.items() if processes.is_sharded(p))
    found["whole"] = sorted(n for n, p in named.items() if not processes.is_sharded(p))
    found["own_numbers"] = sum(processes.local_copy(p).numel() for p in named.values())
    found["all_numbers"] = sum(p.numel() for p in alone.parameters())
    with torch.no_grad(), processes.gathered(split):
        rows = [ids_BT[:1]] * (1 + 2 * processes.rank())  # each as often as it likes
        found["gathered_gap"] = max(float((loss_of(split, r) - loss_of(alone, r)).abs()) for r in rows)
    state = optimizers[1].state[named["model.layers.0.mlp.up_proj.weight"]]["exp_avg"]
    kept = processes.kept_by_main(state)
    reference = optimizers[0].state[alone.model.layers[0].mlp.up_proj.weight]["exp_avg"]
    found["kept"] = float((kept - reference).abs().max()) if processes.is_main() else kept.numel()
    processes.put(named["model.norm.weight"], torch.arange(16.0))
    found["put"] = processes.whole(named["model.norm.weight"].detach()).tolist() == list(range(16))
    return found


def refuses_uneven_shares() -> str:
    learner, stream = make_learner(train=Train(global_batch_size=9, sharding="full"))
    try:
        learner.loop(stream[0])
    except UserError as error:
        return str(error)
    return "nothing"


CHECKS = {
    "deals": deals,
    "hears_errors": hears_errors,
    "compares": compares,
    "sums_gradients": sums_gradients,
    "sends_tensors": sends_tensors,
    "draws": draws,
    "fails": fails,
    "shards_tied": lambda: shards(True),
    "shards_untied": lambda: shards(False),
    "refuses_uneven_shares": refuses_uneven_shares,
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    assert processes.launched()
    found: dict[str, Any] = {}
    with processes.started():
        found["size"] = processes.size()
        rank = processes.rank()
        for name, check in CHECKS.items():
            try:
                found[name] = check()
            except Exception:
                found[name] = {"error": traceback.format_exc()}
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
