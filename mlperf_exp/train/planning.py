"""What the plan fills in for training: batch sizes that fit the card, hyperparameters by MLPerf's reference points."""

from __future__ import annotations

import math
from typing import Any

from mlperf_exp.config import Config, Device, Loader, Optimizer, Precision, Training
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Derived
from mlperf_exp.train.hyperparameters import LARS, Point, reference
from mlperf_exp.train.rules import benchmark, ranks

_GPU_SHARE = 204  # samples of a step for each GPU: 8 make MLPerf's smallest reference point, 16 its second
_CPU_SHARE = 64
_MOST_AT_ONCE = 408  # images in one pass: more is not faster
_MIB_PER_IMAGE = 85.0  # of a ResNet-50 in bf16 at 224 pixels, compiled or not; grows with the area
_WARM_UP_STEPS = 10
_SGD_RATE, _SGD_BATCH = 0.1, 256  # Goyal et al., "Accurate, Large Minibatch SGD", 2017


def plan_training(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """Fill ``config.scenario`` in; the answer says how a step is spread over ranks, and computed.

    Raises:
        UserError: the batch does not divide.
    """
    rules: Training = config.scenario
    settings = _device(config, derived)
    settings |= _batch(config, derived)

    def fill(key: str, value: Any, why: str) -> None:
        if getattr(rules, key) is None:
            setattr(rules, key, value)
            derived.append(Derived(f"scenario.{key}", value.name if isinstance(value, Optimizer) else value, why))

    batch = rules.global_batch_size
    assert batch is not None
    fill("optimizer", Optimizer.lars, "what MLPerf's reference points use")
    point, why = reference(batch) if rules.optimizer is Optimizer.lars else _sgd(batch)
    for key in ("base_lr", "warmup_epochs", "decay_epochs", "momentum", "weight_decay"):
        fill(key, getattr(point, key), why)
    assert rules.warmup_epochs is not None
    assert rules.decay_epochs is not None
    fill("max_epochs", max(1, math.ceil(rules.warmup_epochs + rules.decay_epochs)), "the end of the learning rate")
    assert rules.max_epochs is not None
    mean = min(rules.max_epochs, round(point.epochs))
    offset = min(rules.max_epochs, (mean - 1) % rules.eval_period + 1)
    fill("eval_offset", offset, f"so that epoch {mean}, where the reference ends in the mean, is evaluated")
    known = benchmark(config.model)
    if known is not None:
        fill("target", known.target, f"MLPerf's, training {known.ruleset}")
    return settings


def _device(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """What the processor decides: precision, compilation, warm-up, loader."""
    on_gpu = config.hw.device is Device.cuda
    where = "a GPU" if on_gpu else "a processor"
    chosen: dict[str, Any] = {}
    for key, gpu, cpu in (
        ("precision", Precision.bf16, Precision.fp32),
        ("compile", True, False),
        ("warmup_steps", _WARM_UP_STEPS, 0),
        ("loader", Loader.torchvision, Loader.torchvision),
    ):
        value = getattr(config.backend, key)
        if value is None:
            value = gpu if on_gpu else cpu
            shown = value.name if isinstance(value, Precision | Loader) else value
            derived.append(Derived(f"backend.{key}", shown, f"on {where}"))
        chosen[key] = value.name if isinstance(value, Precision | Loader) else value
    return chosen


def _batch(config: Config, derived: list[Derived]) -> dict[str, Any]:
    rules, world, at_once = config.scenario, ranks(config), config.backend.micro_batch
    if rules.global_batch_size is None:
        if config.hw.device is Device.cuda:
            unit = world * (at_once or _GPU_SHARE)
            rules.global_batch_size = unit * max(1, math.ceil(LARS[0].global_batch / unit))
            why = f"over {world} GPUs; MLPerf's reference points begin at {LARS[0].global_batch:,}"
        else:
            rules.global_batch_size, why = world * (at_once or _CPU_SHARE), "for a processor"
        derived.append(Derived("scenario.global_batch_size", rules.global_batch_size, why))
    batch = rules.global_batch_size
    if batch % world:
        low, high = batch // world * world, -(-batch // world) * world
        raise UserError(
            "scenario.global_batch_size",
            f"{batch:,} samples do not divide over {world:,} processes",
            f"Give {f'{low:,} or ' if low else ''}{high:,}",
        )
    share = batch // world
    if at_once is None:
        most = _fits(config)
        at_once = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
        derived.append(Derived("backend.micro_batch", at_once, f"divides the {share:,} samples of a process, and fits"))
    if share % at_once:
        raise UserError(
            "backend.micro_batch",
            f"{at_once:,} does not divide the {share:,} samples that each process takes in a step",
            f"Give a divisor of {share:,}, or another scenario.global_batch_size",
        )
    return {"ranks": world, "micro_batch": at_once, "accumulation": share // at_once}


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
