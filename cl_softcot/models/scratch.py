"""Models with random weights in the hub's file format, made on the spot: every architecture can be tried without a download.

    python -m cl_softcot.models.scratch FOLDER --family gpt2 --text corpus.txt
    python -m cl_softcot.models.scratch FOLDER --shape llama-8b --experiment experiments/sequence_a.yaml --no-weights

The folder holds a config, a byte-level BPE tokenizer that was trained on the texts, and (unless left out) weights as safetensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cl_softcot.commands import guarded
from cl_softcot.errors import UserError, did_you_mean

END_OF_TEXT = "<|end_of_text|>"
END_OF_TURN = "<|end_of_turn|>"
BEGIN_OF_TEXT = "<|begin_of_text|>"
PADDING = "<|padding|>"
_TURNS = ("<|turn_user|>", "<|turn_model|>")
CHAT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% for message in messages %}"
    "{{ '<|turn_user|>' if message['role'] == 'user' else '<|turn_model|>' }}\n{{ message['content'] }}<|end_of_turn|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn_model|>\n{% endif %}"
)

FAMILIES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi": "phi",
    "phi3": "phi3",
}
_TIED = ("gpt2", "gemma2", "gemma3")
_LLAMA3 = {"family": "llama", "vocabulary": 128256, "context": 131072, "rope_theta": 5e5}
_QWEN25 = {"family": "qwen2", "vocabulary": 151936, "context": 32768, "rope_theta": 1e6}
_QWEN3 = {"family": "qwen3", "vocabulary": 151936, "context": 40960, "rope_theta": 1e6, "head_dim": 128}
_GPT2 = {"family": "gpt2", "vocabulary": 50257, "context": 1024}


def _shape(
    base: dict[str, Any], width: int, layers: int, heads: int, kv_heads: int, feed_forward: int, **more: Any
) -> dict[str, Any]:
    sizes = {"width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads, "feed_forward": feed_forward}
    return {**base, **sizes, **more}


# The published config.json of each, as far as it decides sizes.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-small": _shape(_GPT2, 768, 12, 12, 12, 3072),
    "gpt2-medium": _shape(_GPT2, 1024, 24, 16, 16, 4096),
    "gpt2-large": _shape(_GPT2, 1280, 36, 20, 20, 5120),
    "llama-1b": _shape(_LLAMA3, 2048, 16, 32, 8, 8192, tie_embeddings=True),
    "llama-3b": _shape(_LLAMA3, 3072, 28, 24, 8, 8192, tie_embeddings=True),
    "llama-8b": _shape(_LLAMA3, 4096, 32, 32, 8, 14336),
    "qwen-0.5b": _shape(_QWEN25, 896, 24, 14, 2, 4864, tie_embeddings=True),
    "qwen-1.5b": _shape(_QWEN25, 1536, 28, 12, 2, 8960, tie_embeddings=True),
    "qwen-7b": _shape({**_QWEN25, "vocabulary": 152064}, 3584, 28, 28, 4, 18944),
    "qwen3-0.6b": _shape(_QWEN3, 1024, 28, 16, 8, 3072, tie_embeddings=True),
    "qwen3-4b": _shape(_QWEN3, 2560, 36, 32, 8, 9728, tie_embeddings=True),
    "qwen3-8b": _shape(_QWEN3, 4096, 36, 32, 8, 12288),
    "gemma2-2b": _shape(
        {"family": "gemma2", "vocabulary": 256000, "context": 8192}, 2304, 26, 8, 4, 9216, head_dim=256, sliding_window=4096
    ),
    "gemma3-1b": _shape(
        {"family": "gemma3", "vocabulary": 262144, "context": 32768}, 1152, 26, 4, 1, 6912, head_dim=256, sliding_window=512
    ),
    "phi-2": _shape({"family": "phi", "vocabulary": 51200, "context": 2048}, 2560, 32, 32, 32, 10240, partial_rotary_factor=0.4),
    "phi3-mini": _shape({"family": "phi3", "vocabulary": 32064, "context": 4096}, 3072, 32, 32, 32, 8192),
}


def make_model_folder(
    folder: str | Path,
    family: str,
    *,
    texts: Iterable[str],
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    feed_forward: int | None = None,
    context: int = 512,
    vocabulary: int = 512,
    seed: int = 0,
    dtype: str = "float32",
    chat_template: str | None = None,
    tie_embeddings: bool | None = None,
    bos: bool = False,
    pad: bool = False,
    weights: bool = True,
    **config_overrides: Any,
) -> Path:
    """Writes a model that AutoTokenizer and AutoModelForCausalLM load by the folder's path; returns the folder.

    Args:
        folder: made if it is missing; files of an earlier model in it are replaced.
        family: one of ``FAMILIES``.
        texts: what the tokenizer is trained on. Any text can be written with it: it knows all bytes.
        kv_heads: key and value heads (default: half of the heads where the family can share them, at least one).
        feed_forward: inner width of a layer (default: 4 D for GPT-2 and Phi, 2 D otherwise).
        context: longest sequence, in tokens.
        vocabulary: rows of the embedding. The tokenizer has at most as many tokens; on few texts it has fewer, so the
            last rows belong to no token, as in many published models.
        seed: the weights are drawn from it, at the family's own ``initializer_range``.
        dtype: type of the saved weights: float32, bfloat16 or float16.
        chat_template: None (a base model), 'default', or a Jinja template. With one, the tokenizer's end of text is the end
            of a turn, and generation may stop at either.
        tie_embeddings: embedding and head are one matrix (default: as the family's published models are).
        bos: the tokenizer puts a begin-of-text token in front.
        pad: the tokenizer has a padding token.
        weights: False writes config and tokenizer only, for models that are loaded with ``init: random``.
        config_overrides: further fields of the family's config, such as ``initializer_range=0.3``.

    Raises:
        UserError: for an unknown family, field or dtype, no text, or sizes that do not fit together.
    """
    if family not in FAMILIES:
        raise UserError(f"unknown family {family!r}{did_you_mean(family, FAMILIES)}")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}", fix="known: float32, bfloat16, float16")
    template = CHAT_TEMPLATE if chat_template == "default" else chat_template
    tokenizer = _tokenizer(texts, vocabulary, chat=template is not None, bos=bos, pad=pad)
    tokenizer.model_max_length = context
    tokenizer.chat_template = template
    sizes = {
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads or max(1, heads // 2),
        "feed_forward": feed_forward or (4 if family in ("gpt2", "phi") else 2) * width,
        "context": context,
        "vocabulary": vocabulary,
    }
    tied = family in _TIED if tie_embeddings is None else tie_embeddings
    config = _config(family, sizes, tokenizer, tied, {"dtype": dtype, **config_overrides})
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder, config, tokenizer, seed if weights else None)
    except OSError as error:
        raise UserError(f"the folder cannot be written: {error.strerror or error}", where=str(folder)) from error
    return folder


def _tokenizer(texts: Iterable[str], vocabulary: int, *, chat: bool, bos: bool, pad: bool) -> Any:
    """A byte-level BPE tokenizer of at most ``vocabulary`` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [END_OF_TEXT]
    specials += [END_OF_TURN, *_TURNS] if chat else []
    specials += [BEGIN_OF_TEXT] if bos else []
    specials += [PADDING] if pad else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(specials):
        raise UserError(
            f"a vocabulary of {vocabulary} is too small: {len(alphabet)} bytes and {len(specials)} special tokens need a place"
        )
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("no text to train the tokenizer on")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        begin = (BEGIN_OF_TEXT, inner.token_to_id(BEGIN_OF_TEXT))
        inner.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN_OF_TEXT} $A", pair=f"{BEGIN_OF_TEXT} $A $B", special_tokens=[begin]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END_OF_TURN if chat else END_OF_TEXT,
        bos_token=BEGIN_OF_TEXT if bos else None,
        pad_token=PADDING if pad else None,
        extra_special_tokens=[token for token in specials if token in (END_OF_TEXT, *_TURNS)] if chat else None,
    )


_GPT2_FIELDS = {"width": "n_embd", "layers": "n_layer", "heads": "n_head", "feed_forward": "n_inner", "context": "n_positions"}
_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "feed_forward": "intermediate_size",
    "context": "max_position_embeddings",
}
_ROPE = ("rope_theta", "partial_rotary_factor")


def _config(family: str, sizes: dict[str, int], tokenizer: Any, tied: bool, more: dict[str, Any]) -> Any:
    """The family's config; UserError where it has no such field, or refuses the sizes."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[FAMILIES[family]]
    fields = {**(_GPT2_FIELDS if family == "gpt2" else _FIELDS), "vocabulary": "vocab_size"}
    _check_sizes({name: sizes[name] for name in fields})
    settings: dict[str, Any] = {field: sizes[name] for name, field in fields.items()}
    settings |= {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    settings["tie_word_embeddings"] = tied
    head = more.get("head_dim", sizes["width"] // sizes["heads"])
    if family == "gpt2":  # the one with dropout by default
        settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if family in ("gemma2", "gemma3"):  # their default is a head of 256
        settings |= {"head_dim": head, "query_pre_attn_scalar": head}
    if family == "qwen3":
        settings["head_dim"] = head
    known = [name for name in kind().to_dict() if not name.startswith("_")] + ["dtype", *_ROPE]
    for name in more:
        if name not in known:
            raise UserError(f"the config of {family} has no field {name!r}{did_you_mean(name, known)}")
    settings |= more
    rope = {name: settings.pop(name) for name in _ROPE if name in settings}
    if rope:
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, **rope}
    try:
        return kind(**settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"{family} cannot have these sizes: {str(error).strip().splitlines()[-1].strip()}") from error


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} should be at least 1 (got {size})")
    if sizes["width"] % sizes["heads"] or (sizes["width"] // sizes["heads"]) % 2:
        raise UserError(f"a width of {sizes['width']} is not {sizes['heads']} heads of an even size each")
    if sizes["heads"] % sizes.get("kv_heads", 1):
        raise UserError(f"{sizes['kv_heads']} key and value heads do not divide the {sizes['heads']} heads")


def _save(folder: Path, config: Any, tokenizer: Any, seed: int | None) -> None:
    """Config, tokenizer, the ends of an answer and, with a seed, weights."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    for old in (*folder.glob("model*.safetensors*"), folder / "chat_template.jinja"):
        old.unlink(missing_ok=True)
    ends = [tokenizer.eos_token_id]
    if tokenizer.eos_token == END_OF_TURN:
        ends.append(tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    settings = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "pad")}
    generation = GenerationConfig(eos_token_id=ends if len(ends) > 1 else ends[0], **settings)
    transformers_logging.disable_progress_bar()
    if seed is None:
        config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
        config.save_pretrained(folder)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        model.generation_config = generation
        model.save_pretrained(folder)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------- command

_SIZES = ("width", "layers", "heads", "kv_heads", "feed_forward", "context", "vocabulary")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cl_softcot.models.scratch",
        description="Writes a model with random weights, and a tokenizer trained on given texts, in the hub's format.",
    )
    p.add_argument("folder", help="where the model is written")
    p.add_argument("--family", choices=list(FAMILIES), help="architecture (default: that of --shape, or gpt2)")
    p.add_argument("--shape", metavar="NAME", help=f"sizes of a published model: {', '.join(SHAPES)}")
    p.add_argument("--text", nargs="+", metavar="FILE", default=[], help="text files for the tokenizer")
    p.add_argument("--experiment", metavar="YAML", help="take the training examples of its tasks as texts")
    for name in _SIZES:
        p.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    p.add_argument("--chat", action="store_true", help="with a chat template, as an instruction-tuned model has one")
    p.add_argument("--bos", action="store_true", help="the tokenizer puts a begin-of-text token in front")
    p.add_argument("--no-weights", action="store_true", help="config and tokenizer only; load it with `init: random`")
    p.add_argument("--seed", type=int, default=0)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return guarded(lambda: _write(args))


def _write(args: argparse.Namespace) -> int:
    chosen = _choices(args)
    print(make_model_folder(args.folder, texts=_texts(args), **chosen))
    return 0


def _choices(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``make_model_folder``: the shape's, with what was said otherwise."""
    if args.shape is not None and args.shape not in SHAPES:
        raise UserError(f"unknown shape {args.shape!r}{did_you_mean(args.shape, SHAPES)}")
    chosen = dict(SHAPES[args.shape]) if args.shape else {"family": "gpt2"}
    if args.shape and args.family not in (None, chosen["family"]):
        raise UserError(f"the shape {args.shape} is of the family {chosen['family']}, not {args.family}")
    said = {name: getattr(args, name) for name in ("family", *_SIZES) if getattr(args, name) is not None}
    template = "default" if args.chat else None
    more = {"dtype": args.dtype, "seed": args.seed, "bos": args.bos, "weights": not args.no_weights, "chat_template": template}
    return {**chosen, **said, **more}


def _texts(args: argparse.Namespace) -> list[str]:
    texts = []
    for name in args.text:
        try:
            texts.append(Path(name).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("not a readable text file", where=name, fix="give UTF-8 text files") from error
    if args.experiment:
        texts += experiment_texts(args.experiment)
    if not texts:
        raise UserError("the tokenizer needs texts", fix="give --text FILE ... or --experiment EXPERIMENT.yaml")
    return texts


def experiment_texts(path: str | Path) -> list[str]:
    """Questions, steps and answers of the training examples of an experiment's tasks."""
    from cl_softcot.config.loading import load_experiment  # only this command knows of experiments

    config = load_experiment(path).config
    return [
        "\n".join([example.question, *example.steps, f"### {example.answer}"])
        for task in config.tasks
        for example in task.make().examples("train", config.train.examples, config.seeds[0])
    ]


if __name__ == "__main__":
    sys.exit(main())
