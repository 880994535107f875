"""Decoders: the checkpoint's folder, prompts as token ids, and ROUGE of what was answered."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.config import Decoder, Model, OpenaiBackend, Prompts, Weights
from mlperf_exp.data import ARTICLES
from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.inputs import Inputs
from mlperf_exp.memory import BYTES, GIB, weight_bytes
from mlperf_exp.messages import Derived, Plan, Sample, Score


@dataclass(frozen=True, slots=True)
class RougeScorer:
    """ROUGE against the data set's summaries; ``decode`` makes text of token ids."""

    references: Sequence[str]
    decode: Callable[[list[list[int]]], list[str]]

    def score(self, log: Path, on_progress: Callable[[int, int], None]) -> Score:
        """See :class:`mlperf_exp.inputs.Scorer`."""
        from mlperf_exp.data.accuracy_log import read_accuracy_log
        from mlperf_exp.data.rouge import score

        return score(read_accuracy_log(log), self.references, self.decode, on_progress=on_progress)

    def text(self, score: Score) -> str:
        """See :class:`mlperf_exp.inputs.Scorer`."""
        from mlperf_exp.data.rouge import accuracy_text

        return accuracy_text(score)


def load(plan: Plan) -> Inputs:
    """Find the checkpoint, read the prompts; see :func:`mlperf_exp.inputs.load`."""
    config = plan.config
    folder = _model_folder(plan)
    dataset, derived = _dataset(config.dataset, config.model)
    samples = _samples(dataset, config.model, folder, _context(plan), config.seed)
    scorer = None
    if "accuracy" in plan.modes:
        decode = decoder(_tokenizer_folder(folder, config.model))
        scorer = RougeScorer([sample.reference for sample in samples], decode)
    return Inputs(folder, samples, scorer, [len(sample.tokens) for sample in samples], derived)


def check_host_memory(plan: Plan) -> None:
    """On a processor, weights and context live in the machine's own memory."""
    import psutil

    needed = weight_bytes(plan.config.model.architecture, BYTES.get(str(plan.engine["dtype"]), 2.0)) / GIB
    needed += plan.config.hw.memory_gib
    present = psutil.virtual_memory().total / GIB
    if needed > present:
        raise UserError(
            "hw",
            f"{plan.config.model.name} takes {needed:.1f} GiB with its context, this machine has {present:.1f} GiB",
            "Choose a smaller model (experiment=quickstart runs anywhere), or a profile with a GPU",
        )


def _context(plan: Plan) -> int:
    """The longest prompt in tokens that the system can take."""
    longest = plan.engine.get("max_model_len")
    model: Decoder = plan.config.model
    return (int(longest) if longest else model.architecture.max_context) - model.max_new_tokens


def _model_folder(plan: Plan) -> Path | None:
    model = plan.config.model
    if model.weights is Weights.dummy:
        return _dummy_folder(model)
    if model.path == "builtin:llama3_tiny":
        from mlperf_exp.tiny_llama import ensure

        return ensure(Path("outputs") / "models" / "llama3_tiny")
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return _complete(folder)
    if isinstance(plan.config.backend, OpenaiBackend):
        return None
    return _complete(cached(model))


def _dummy_folder(model: Decoder) -> Path:
    """A folder with only ``config.json``: the same one for the same model, as vLLM's compile cache goes by its path."""
    description = huggingface_config(model)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = Path("outputs") / "models" / f"{model.name}-dummy-{digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", description)
    return folder.absolute()


def cached(model: Model) -> Path:
    """The model's folder in the Hugging Face cache; nothing is downloaded here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        raise UserError(
            "model.path",
            f"'{model.path}' is neither a folder nor in the Hugging Face cache",
            f"Fetch it with: hf download {model.path} (a gated model wants HF_TOKEN), give model.path=FOLDER, or "
            "measure speed only with model.weights=dummy",
        ) from None


def _complete(folder: Path) -> Path:
    """Check that a checkpoint's pieces are there."""
    wanted = {"config.json": ["config.json"], "weights": ["*.safetensors"], "tokenizer.json": ["tokenizer.json"]}
    for piece, patterns in wanted.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            remedy = "Give the folder of a whole Hugging Face checkpoint (safetensors)"
            raise UserError("model.path", f"{folder} has no {piece}", remedy)
    for name in _shards(folder / "model.safetensors.index.json"):
        if not (folder / name).is_file():
            raise UserError("model.path", f"{folder} lacks {name}, which its index names", "Fetch the model again")
    return folder


def _shards(index: Path) -> list[str]:
    """The files that a checkpoint in several pieces must have."""
    if not index.exists():
        return []
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError("model.path", f"{index} cannot be read", "Fetch the model again") from None


def huggingface_config(model: Decoder) -> dict[str, Any]:
    """``config.json`` of a Llama with the model's architecture, for dummy weights."""
    shape = model.architecture
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_context,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": list(shape.eos_token_ids),
        "tie_word_embeddings": False,
        "torch_dtype": model.dtype,
    }


def _dataset(dataset: Prompts, model: Decoder) -> tuple[Prompts, tuple[Derived, ...]]:
    """The data set to read: with dummy weights and no file, random prompts of the same lengths stand in."""
    if model.weights is Weights.dummy and dataset.path and not Path(dataset.path).exists():
        count = dataset.samples or model.performance_samples
        why = f"dummy weights need no text, and there is no file {dataset.path}: random prompts of its lengths"
        stand_in = Prompts(
            name="synthetic", synthetic=True, samples=count, mean_prompt_tokens=dataset.mean_prompt_tokens
        )
        return stand_in, (Derived("dataset", "synthetic", why),)
    return dataset, ()


def _samples(dataset: Prompts, model: Decoder, folder: Path | None, context: int, seed: int) -> list[Sample]:
    if dataset.synthetic:
        from mlperf_exp.data import synthetic

        return synthetic.load(
            samples=dataset.samples or model.performance_samples or 13368,
            mean_tokens=dataset.mean_prompt_tokens,
            sigma=dataset.sigma_prompt_tokens,
            max_tokens=min(context, model.max_prompt_tokens),
            vocab_size=model.architecture.vocab_size,
            seed=seed,
        )
    from mlperf_exp.data import cnn_dailymail

    if dataset.path is None and dataset.name != "articles":
        raise UserError("dataset.path", f"{dataset.name} needs a file", "Give one, or choose dataset=articles")
    path = ARTICLES if dataset.name == "articles" and dataset.path is None else Path(str(dataset.path)).expanduser()
    tokenize = tokenizer(_tokenizer_folder(folder, model)) if dataset.tokenize else None
    vocabulary = model.architecture.vocab_size
    return cnn_dailymail.load(path, tokenize, limit=dataset.samples, max_tokens=context, vocab_size=vocabulary)


def _tokenizer_folder(folder: Path | None, model: Decoder) -> Path:
    if folder is not None and (folder / "tokenizer.json").exists():
        return folder
    if folder is not None:
        raise UserError(
            "dataset.tokenize",
            "dummy weights come without a tokenizer",
            "Use dataset=synthetic, or a data set that carries token ids (dataset=cnn_dailymail)",
        )
    return cached(model)


def tokenizer(folder: Path, special: bool = True) -> Callable[[str], list[int]]:
    """Text -> token ids; ``special`` with the begin-of-text token, as the reference tokenizes prompts."""
    from tokenizers import Tokenizer

    try:
        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        problem = f"{folder / 'tokenizer.json'} cannot be read: {error}"
        raise UserError("model.path", problem, "Fetch the model again") from None
    return lambda text: list(fast.encode(text, add_special_tokens=special).ids)


def decoder(folder: Path) -> Callable[[list[list[int]]], list[str]]:
    """Token ids -> text without special tokens, by transformers' tokenizer as in the reference."""

    @functools.cache
    def chosen() -> Any:  # made at the first use: after the measurement
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    return lambda batch: list(chosen().batch_decode(batch, skip_special_tokens=True))
