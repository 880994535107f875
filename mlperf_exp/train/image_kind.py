"""Training image classifiers, as the plan and the record see it; see :class:`.kind.Kind`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from mlperf_exp.config import Config, Device, Loader, Optimizer, Training
from mlperf_exp.errors import UserError, missing_extra
from mlperf_exp.messages import Derived, Plan
from mlperf_exp.train.folders import find as find_images
from mlperf_exp.train.hyperparameters import IMAGENET_TRAIN, IMAGENET_VAL, LARS, Point, reference
from mlperf_exp.train.job import ImageTask, Optimization
from mlperf_exp.train.kind import Schedule, TrainingData
from mlperf_exp.train.planning import divided, fill
from mlperf_exp.train.rules import RESNET, TrainingBenchmark, power_of_two_times, ranks

KEYS: tuple[str, ...] = (
    "scenario.warmup_epochs", "scenario.decay_epochs", "scenario.decay_power", "scenario.momentum",
    "scenario.label_smoothing", "scenario.crop_min_area", "scenario.flip", "scenario.max_epochs",
    "scenario.eval_offset", "scenario.eval_period", "backend.loader", "backend.channels_last",
)  # fmt: skip
NOUN = "images"
LIKE = RESNET
READERS = 24

_GPU_SHARE = 204  # samples of a step for each GPU: 8 make MLPerf's smallest reference point, 16 its second
_CPU_SHARE = 64
_MOST_AT_ONCE = 408  # images in one pass: more is not faster
_MIB_PER_IMAGE = 85.0  # of a ResNet-50 in bf16 at 224 pixels, compiled or not; grows with the area
_SGD_RATE, _SGD_BATCH = 0.1, 256  # Goyal et al., "Accurate, Large Minibatch SGD", 2017
_GRADIENTS = 3.0  # a training step's operations for each of a forward pass: those of the weights' and inputs' gradients


def plan(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """See :class:`.kind.Kind`."""
    rules: Training = config.scenario
    if rules.optimizer is Optimizer.adamw:
        raise UserError("scenario.optimizer", "adamw is not for images", "Give lars or sgd")
    loader = config.backend.loader or Loader.torchvision
    if loader is Loader.nvjpeg and config.hw.device is not Device.cuda:
        problem = f"nvjpeg decodes on an NVIDIA GPU, and hw={config.hw.name} has none"
        raise UserError("backend.loader", problem, "Leave it out, or give torchvision or dali")
    settings = {"loader": loader.name} | _batch(config, derived)
    batch = rules.global_batch_size
    assert batch is not None
    fill(config, derived, "optimizer", Optimizer.lars, "what MLPerf's reference points use")
    point, why = reference(batch) if rules.optimizer is Optimizer.lars else _sgd(batch)
    for key in ("base_lr", "warmup_epochs", "decay_epochs", "momentum", "weight_decay"):
        fill(config, derived, key, getattr(point, key), why)
    assert rules.warmup_epochs is not None
    assert rules.decay_epochs is not None
    end = max(1, math.ceil(rules.warmup_epochs + rules.decay_epochs))
    for key, value in (
        ("end_lr", 1e-4), ("decay_power", 2.0), ("label_smoothing", 0.1), ("crop_min_area", 0.08), ("flip", True),
        ("eval_period", RESNET.eval_period),
    ):  # fmt: skip
        fill(config, derived, key, value, "MLPerf's, for ResNet-50")
    fill(config, derived, "max_epochs", end, "the end of the learning rate")
    assert rules.max_epochs is not None
    assert rules.eval_period is not None
    mean = min(rules.max_epochs, round(point.epochs))
    offset = min(rules.max_epochs, (mean - 1) % rules.eval_period + 1)
    why = f"so that epoch {mean}, where the reference ends in the mean, is evaluated"
    fill(config, derived, "eval_offset", offset, why)
    return settings


def find(plan: Plan) -> TrainingData:
    """See :class:`.kind.Kind`."""
    from mlperf_exp.kinds.images import folder_of

    dataset, model = plan.config.dataset, plan.config.model
    if dataset.synthetic:
        return TrainingData(None, dataset.samples or IMAGENET_TRAIN, IMAGENET_VAL)
    if dataset.samples is not None:
        raise UserError("dataset.samples", "training takes all of the data set", "Leave it out")
    if plan.engine["loader"] == Loader.dali.name and not _installed("nvidia.dali"):
        raise missing_extra("nvidia-dali-cuda130", "backend.loader=dali", "dali")
    folder = folder_of(dataset)
    if folder is None:
        raise UserError("dataset.path", f"{dataset.name} needs a folder", "Give one, or choose dataset=digits")
    train, val = find_images(folder)
    if len(train.classes) != model.classes:
        raise UserError(
            "dataset.path",
            f"{folder} has {len(train.classes):,} classes, {model.name} names {model.classes:,}",
            f"Give model.classes={len(train.classes)}, or the model's own data",
        )
    return TrainingData(folder.absolute(), len(train), len(val))


def task(plan: Plan) -> ImageTask:
    """See :class:`.kind.Kind`."""
    model, rules = plan.config.model, plan.config.scenario
    return ImageTask(
        network=model.network,
        num_classes=model.classes,
        image_size=model.image_size,
        label_smoothing=rules.label_smoothing,
        crop_min_area=rules.crop_min_area,
        flip=rules.flip,
        channels_last=plan.config.backend.channels_last is not False,
        loader=plan.engine["loader"],
    )


def optimization(plan: Plan, train_samples: int) -> Optimization:
    """See :class:`.kind.Kind`."""
    rules = plan.config.scenario
    return Optimization(
        name=rules.optimizer.name,
        base_lr=rules.base_lr,
        end_lr=rules.end_lr,
        warmup_steps=round(rules.warmup_epochs * (train_samples // rules.global_batch_size)),
        decay_steps=max(1, round(rules.decay_epochs * train_samples / rules.global_batch_size)),
        power=rules.decay_power,
        momentum=rules.momentum,
        weight_decay=rules.weight_decay,
        warmup_epochs=rules.warmup_epochs,
    )


def schedule(plan: Plan, train_samples: int) -> Schedule:
    """See :class:`.kind.Kind`; MLPerf's ResNet-50: every 4 epochs, the first after one to four."""
    rules = plan.config.scenario
    epoch = train_samples // rules.global_batch_size
    return Schedule(rules.max_epochs * epoch, rules.eval_offset * epoch, rules.eval_period * epoch)


def closed(plan: Plan, known: TrainingBenchmark, found: dict[str, Any]) -> Iterator[str]:
    """See :class:`.kind.Kind`."""
    rules: Training = plan.config.scenario
    for key, wanted in (("train_samples", known.train_samples), ("eval_samples", known.eval_samples)):
        if wanted is not None and found.get(key, wanted) != wanted:
            yield f"The data set has {found[key]:,} {key.replace('_', ' ')}, the benchmark's {wanted:,}: use the whole."
    for key, allowed, words in (
        ("label_smoothing", rules.label_smoothing in (0.0, 0.1), "0 or 0.1"),
        ("end_lr", rules.end_lr == 1e-4, "0.0001"),
        ("decay_power", rules.decay_power == 2.0, "2"),
        ("weight_decay", power_of_two_times(rules.weight_decay or 0.0, 1e-4), "0.0001 times a power of two"),
        ("eval_period", rules.eval_period == known.eval_period, f"{known.eval_period}"),
        ("eval_offset", 1 <= (rules.eval_offset or 0) <= known.eval_period, f"1 to {known.eval_period}"),
        ("crop_min_area", rules.crop_min_area == 0.08, "0.08"),
        ("flip", bool(rules.flip), "true"),
    ):
        if not allowed:
            yield f"scenario.{key}={getattr(rules, key)} is not the closed division's: it wants {words}."
    if (plan.config.model.image_size, plan.config.model.resize) != (224, 256):
        yield f"The closed division trains on images of 224 pixels, not {plan.config.model.image_size}."


def sample_flops(plan: Plan) -> float | None:
    """See :class:`.kind.Kind`."""
    gflops = plan.config.model.gflops_per_sample
    return None if gflops is None else float(_GRADIENTS * gflops * 1e9)


def sample_tokens(plan: Plan) -> int | None:
    """See :class:`.kind.Kind`: images have none."""
    return None


def _batch(config: Config, derived: list[Derived]) -> dict[str, Any]:
    rules, world, at_once = config.scenario, ranks(config), config.backend.micro_batch
    if rules.global_batch_size is None:
        if config.hw.device is Device.cuda:
            unit = world * (at_once or _GPU_SHARE)
            size = unit * max(1, math.ceil(LARS[0].global_batch / unit))
            why = f"over {world} GPUs; MLPerf's reference points begin at {LARS[0].global_batch:,}"
        else:
            size, why = world * (at_once or _CPU_SHARE), "for a processor"
        fill(config, derived, "global_batch_size", size, why)
    return divided(config, derived, "samples", _fits(config))


def _installed(package: str) -> bool:
    """Whether it can be imported, without doing it."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _fits(config: Config) -> int:
    """How many images a card holds at once; a processor's memory is not looked at."""
    if config.hw.device is not Device.cuda:
        return _MOST_AT_ONCE
    area = (config.model.image_size / 224) ** 2
    return max(1, min(_MOST_AT_ONCE, int(0.85 * config.hw.memory_gib * 1024 / (_MIB_PER_IMAGE * area))))


def _sgd(batch: int) -> tuple[Point, str]:
    """Ninety epochs of SGD: no reference point of MLPerf has it."""
    rate = max(0.001, round(_SGD_RATE * batch / _SGD_BATCH, 3))
    steps = max(1, round(85 * 1_281_167 / batch))
    return Point(batch, rate, 5, 5e-5, 0.9, steps, 90.0), f"SGD's usual rate, {_SGD_RATE} for {_SGD_BATCH} images"
