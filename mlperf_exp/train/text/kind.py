"""Training language models, as the plan and the record see it; see :class:`..kind.Kind`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_exp.config import Config, Device, LanguageModel, Optimizer, Training
from mlperf_exp.errors import UserError
from mlperf_exp.memory import GIB
from mlperf_exp.messages import Derived, Plan
from mlperf_exp.train.job import Optimization, TextTask
from mlperf_exp.train.kind import Schedule, TrainingData
from mlperf_exp.train.planning import divided, fill
from mlperf_exp.train.rules import LLAMA31_8B, TrainingBenchmark, benchmark, ranks
from mlperf_exp.train.text import reference as points
from mlperf_exp.train.text.memory import SHARE, bytes_needed, most_at_once

KEYS: tuple[str, ...] = (
    "scenario.warmup_steps", "scenario.max_steps", "scenario.clip_norm", "scenario.eval_every_samples",
    "scenario.eval_samples", "backend.recompute",
)  # fmt: skip
NOUN = "sequences"
LIKE = LLAMA31_8B
READERS = 2

_CPU_BATCH, _CPU_AT_ONCE = 16, 16
_SHORT = 400  # steps of a model that is no benchmark
_SHORT_EVAL = 1600  # samples between its evaluations
_LLAMA31_8B = {
    "layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "rope_theta": 500000.0,
}  # fmt: skip
_C4 = ("c4-train.en_6_text_document",), "c4-validation-91205-samples.en_text_document"


def plan(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """See :class:`..kind.Kind`."""
    rules: Training = config.scenario
    model: LanguageModel = config.model
    fill(config, derived, "optimizer", Optimizer.adamw, "what MLPerf's reference points use")
    assert rules.optimizer is not None
    if rules.optimizer is not Optimizer.adamw:
        raise UserError("scenario.optimizer", f"{rules.optimizer.name} is not for text", "Give adamw, or leave it out")
    if model.sequence_length > model.architecture.max_context:
        longest = model.architecture.max_context
        problem = f"{model.sequence_length:,} tokens exceed the model's context of {longest:,}"
        raise UserError("model.sequence_length", problem, f"Give at most {longest:,}")
    _batch(config, derived)
    batch = rules.global_batch_size
    assert batch is not None
    most, recompute = _fits(config, derived)
    settings = divided(config, derived, NOUN, most) | {"recompute": recompute}
    point, why = points.reference(batch)
    if benchmark(model) is not None:
        shared = "MLPerf's, for Llama 3.1 8B"
        fill(config, derived, "base_lr", point.base_lr, why)
        fill(config, derived, "warmup_steps", point.warmup_steps, why)
        fill(config, derived, "max_steps", points.MAX_STEPS, shared)
        fill(config, derived, "eval_every_samples", points.EVAL_EVERY, shared)
        fill(config, derived, "eval_samples", points.EVAL_SAMPLES, shared)
    else:
        why = "a short training: the model is no benchmark"
        rate = points.small_rate(model.architecture.parameters)
        fill(config, derived, "base_lr", rate, "by the number of parameters (Kaplan et al. 2020, D.1)")
        fill(config, derived, "max_steps", _SHORT, why)
        assert rules.max_steps is not None
        fill(config, derived, "warmup_steps", min(rules.max_steps // 10, 2000), "a tenth of the training")
        fill(config, derived, "eval_every_samples", _SHORT_EVAL, why)
    assert rules.base_lr is not None
    end = f"{points.END_SHARE:g} of scenario.base_lr, as MLPerf has it"
    fill(config, derived, "end_lr", points.END_SHARE * rules.base_lr, end)
    fill(config, derived, "weight_decay", points.WEIGHT_DECAY, "MLPerf's, for Llama 3.1 8B")
    fill(config, derived, "clip_norm", points.CLIP_NORM, "MLPerf's, for Llama 3.1 8B")
    assert rules.max_steps is not None
    assert rules.warmup_steps is not None
    if rules.warmup_steps >= rules.max_steps:
        problem = f"{rules.warmup_steps:,} steps leave nothing of scenario.max_steps={rules.max_steps:,}"
        raise UserError("scenario.warmup_steps", problem, f"Give less than {rules.max_steps:,}")
    return settings


def find(plan: Plan) -> TrainingData:
    """See :class:`..kind.Kind`."""
    dataset, model, wanted = plan.config.dataset, plan.config.model, plan.config.scenario.eval_samples
    _check_host(plan)
    if dataset.synthetic:
        return TrainingData(None, dataset.samples or points.EVAL_EVERY, wanted or points.EVAL_SAMPLES)
    if dataset.samples is not None:
        raise UserError("dataset.samples", "training takes all of the data set", "Leave it out")
    folder = _folder(dataset)
    if not dataset.train or dataset.validation is None:
        key = "dataset.validation" if dataset.train else "dataset.train"
        raise UserError(key, "names no file", "Give files of dataset.path, without .bin and .idx")
    from mlperf_exp.train.text.packing import count

    train = count([folder / name for name in dataset.train], model.sequence_length)
    present = count([folder / dataset.validation], model.sequence_length)
    if present < (wanted or 1):
        problem = f"{dataset.validation} makes {present:,} sequences of {model.sequence_length:,} tokens"
        remedy = f"Give scenario.eval_samples={present}, or another file" if present else "Give another file"
        raise UserError("dataset.validation", f"{problem}, and {wanted or 1:,} are to be evaluated", remedy)
    return TrainingData(folder.absolute(), train, wanted or present)


def task(plan: Plan) -> TextTask:
    """See :class:`..kind.Kind`."""
    model, dataset, shape = plan.config.model, plan.config.dataset, plan.config.model.architecture
    return TextTask(
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        rope_theta=shape.rope_theta,
        rope_scaling=shape.rope_scaling,
        rms_norm_eps=shape.rms_norm_eps,
        sequence_length=model.sequence_length,
        train=tuple(dataset.train),
        validation=dataset.validation or "",
        clip_norm=plan.config.scenario.clip_norm,
        recompute=plan.engine["recompute"],
    )


def optimization(plan: Plan, train_samples: int) -> Optimization:
    """See :class:`..kind.Kind`: a linear warm-up, then a cosine down to the last step."""
    rules = plan.config.scenario
    return Optimization(
        name=rules.optimizer.name,
        base_lr=rules.base_lr,
        end_lr=rules.end_lr,
        warmup_steps=rules.warmup_steps,
        decay_steps=rules.max_steps - rules.warmup_steps,
        power=1.0,
        momentum=0.0,
        weight_decay=rules.weight_decay,
    )


def schedule(plan: Plan, train_samples: int) -> Schedule:
    """See :class:`..kind.Kind`; MLPerf: every 12,288 samples, rounded up to whole steps."""
    rules = plan.config.scenario
    every = math.ceil(rules.eval_every_samples / rules.global_batch_size)
    return Schedule(rules.max_steps, every, every)


def closed(plan: Plan, known: TrainingBenchmark, found: dict[str, Any]) -> Iterator[str]:
    """See :class:`..kind.Kind`."""
    rules, dataset = plan.config.scenario, plan.config.dataset
    if (tuple(dataset.train), dataset.validation) != _C4:
        yield f"The closed division trains on {', '.join(_C4[0])} and is evaluated on {_C4[1]}."
    for key, wanted in (
        ("eval_samples", known.eval_samples),
        ("eval_every_samples", known.eval_period),
        ("max_steps", points.MAX_STEPS),
        ("weight_decay", points.WEIGHT_DECAY),
        ("clip_norm", points.CLIP_NORM),
    ):
        if getattr(rules, key) != wanted:
            yield f"scenario.{key}={getattr(rules, key)} is not the closed division's: it wants {wanted:,}."
    if not math.isclose(rules.end_lr, points.END_SHARE * rules.base_lr, rel_tol=1e-9):
        yield f"scenario.end_lr={rules.end_lr:g} is not the closed division's: it wants a tenth of scenario.base_lr."
    if plan.config.model.sequence_length != 8192:
        yield f"The closed division trains on 8,192 tokens, not {plan.config.model.sequence_length:,}."
    shape = plan.config.model.architecture
    for key, count in _LLAMA31_8B.items():
        if getattr(shape, key) != count:
            yield f"model.architecture.{key}={getattr(shape, key):,} is not Llama 3.1 8B's: it has {count:,}."


def sample_flops(plan: Plan) -> float | None:
    """See :class:`..kind.Kind`: 6 a token for each parameter that multiplies, and causal attention's two products.

    All parameters multiply but the embedding's. Attention: 6 for each layer, dimension of all heads, and pair of
    tokens, as half of the pairs are masked. Source: Chowdhery et al., "PaLM", 2022, appendix B, which counts all pairs.
    """
    shape, length = plan.config.model.architecture, plan.config.model.sequence_length
    multiplied = shape.parameters - shape.vocab_size * shape.hidden_size
    attention = 6 * shape.layers * shape.heads * shape.head_dim * length
    return float(length * (6 * multiplied + attention))


def sample_tokens(plan: Plan) -> int | None:
    """See :class:`..kind.Kind`."""
    return int(plan.config.model.sequence_length)


def _batch(config: Config, derived: list[Derived]) -> None:
    unit = ranks(config) * (config.backend.micro_batch or 1)
    if config.hw.device is not Device.cuda:
        fill(config, derived, "global_batch_size", unit * math.ceil(_CPU_BATCH / unit), "for a processor")
        return
    fitting = [point.global_batch for point in points.POINTS if point.global_batch % unit == 0]
    size = fitting[0] if fitting else unit
    why = f"MLPerf's smallest reference point that {unit:,} divides" if fitting else f"over {ranks(config):,} GPUs"
    fill(config, derived, "global_batch_size", size, why)


def _fits(config: Config, derived: list[Derived]) -> tuple[int, bool]:
    """How many sequences a card takes at once, and whether activations are computed again.

    A GPU that is too small is refused; a processor's memory is looked at by :func:`find`.
    """
    recompute, at_once = config.backend.recompute, config.backend.micro_batch
    model, hw, world = config.model, config.hw, ranks(config)
    if hw.device is not Device.cuda:
        return _CPU_AT_ONCE, bool(recompute)
    compiled = config.backend.compile is not False

    def most(again: bool) -> int:
        length, memory = model.sequence_length, hw.memory_gib
        return most_at_once(model.architecture, world, length, memory, recompute=again, compiled=compiled)

    def gib(sequences: int, again: bool) -> float:
        tokens = sequences * model.sequence_length
        return bytes_needed(model.architecture, world, tokens, recompute=again, compiled=compiled) / GIB

    chosen = recompute if recompute is not None else most(False) < (at_once or 1)
    fitting = most(chosen)
    if fitting < (at_once or 1):
        states = 16 * model.architecture.parameters / world / GIB
        where = f"each of {world:,} GPUs" if world > 1 else "its GPU"
        raise UserError(
            "backend.micro_batch" if fitting else "hw",
            f"{model.name} does not train on {hw.name}: {where} would need {gib(at_once or 1, chosen):.0f} GiB of "
            f"{SHARE * hw.memory_gib:.0f} that can be planned with, {states:.0f} of them for weights, gradients and "
            "AdamW's state",
            f"Give backend.micro_batch={fitting} or less" if fitting else "Use a profile of more or larger GPUs",
        )
    if recompute is None:
        without = f"{gib(at_once or 1, False):.0f} of {hw.memory_gib:g} GiB"
        why = f"without it a GPU would take {without}" if chosen else f"a GPU takes {without} with all activations"
        derived.append(Derived("backend.recompute", chosen, why))
    return fitting, chosen


def _check_host(plan: Plan) -> None:
    """On a processor all ranks of a node share its memory."""
    config = plan.config
    if config.hw.device is Device.cuda:
        return
    import psutil

    needed = 16 * config.model.architecture.parameters / config.hw.nodes / GIB
    present = psutil.virtual_memory().total / GIB
    if needed > 0.8 * present:
        raise UserError(
            "hw",
            f"training {config.model.name} takes {needed:.0f} GiB and more, this machine has {present:.0f} GiB",
            "Use model=llama3_tiny_pretrain, or a profile with GPUs",
        )


def _folder(dataset: Any) -> Path:
    """The folder of the files; the built-in ones are written first."""
    if dataset.path is None:
        raise UserError("dataset.path", f"{dataset.name} needs a folder", "Give one, or choose dataset=tiny_texts")
    if dataset.path == "builtin:tiny_texts":
        from mlperf_exp.data.tiny_texts import write_texts

        return write_texts(Path(dataset.cache) / "tiny_texts", Path("outputs") / "models")
    folder = Path(dataset.path).expanduser()
    if not folder.is_dir():
        names = ", ".join(f"{name}.bin" for name in dataset.train)
        raise UserError("dataset.path", f"there is no folder {folder}", f"Give the one that holds {names} and its .idx")
    return folder
