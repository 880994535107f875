"""What the plan fills in for training: batch sizes that fit the card, hyperparameters by MLPerf's reference points."""

from __future__ import annotations

from typing import Any

from mlperf_exp.config import Config, Device, Optimizer, Precision, Training
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Derived
from mlperf_exp.train import kind
from mlperf_exp.train.rules import benchmark, ranks

_WARM_UP_STEPS = 10


def plan_training(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """Fill ``config.scenario`` in; the answer says how a step is spread over ranks, and computed.

    Raises:
        UserError: the batch does not divide, the model does not fit, or a key is of another kind of model.
    """
    own = kind.of(config.model)
    _refuse_others_keys(config, own)
    settings = _device(config, derived) | own.plan(config, derived)
    known = benchmark(config.model)
    if known is not None:
        fill(config, derived, "target", known.target, f"MLPerf's, training {known.ruleset}")
    return settings


def fill(config: Config, derived: list[Derived], key: str, value: Any, why: str) -> None:
    """Set ``scenario.key`` where it was left open, and say so."""
    rules: Training = config.scenario
    if getattr(rules, key) is None:
        setattr(rules, key, value)
        derived.append(Derived(f"scenario.{key}", value.name if isinstance(value, Optimizer) else value, why))


def divided(config: Config, derived: list[Derived], noun: str, most: int) -> dict[str, Any]:
    """How a step of ``scenario.global_batch_size`` samples is spread over ranks; ``most`` fit at once.

    Raises:
        UserError: it does not divide.
    """
    batch, world, at_once = config.scenario.global_batch_size, ranks(config), config.backend.micro_batch
    assert batch is not None
    if batch % world:
        low, high = batch // world * world, -(-batch // world) * world
        raise UserError(
            "scenario.global_batch_size",
            f"{batch:,} {noun} do not divide over {world:,} processes",
            f"Give {f'{low:,} or ' if low else ''}{high:,}",
        )
    share = batch // world
    if at_once is None:
        at_once = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
        derived.append(Derived("backend.micro_batch", at_once, f"divides the {share:,} {noun} of a process, and fits"))
    if share % at_once:
        raise UserError(
            "backend.micro_batch",
            f"{at_once:,} does not divide the {share:,} {noun} that each process takes in a step",
            f"Give a divisor of {share:,}, or another scenario.global_batch_size",
        )
    return {"ranks": world, "micro_batch": at_once, "accumulation": share // at_once}


def _refuse_others_keys(config: Config, own: kind.Kind) -> None:
    """A key that the model's kind of training does not have would be passed over without a word."""
    for other in kind.every():
        for key in set(other.KEYS) - set(own.KEYS):
            group, _, name = key.partition(".")
            if getattr(getattr(config, group), name) is not None:
                problem = f"training {config.model.name} on {own.NOUN} has no such setting"
                raise UserError(key, problem, f"Leave it out; its own are {', '.join(own.KEYS)}")


def _device(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """What the processor decides: precision, compilation, warm-up."""
    on_gpu = config.hw.device is Device.cuda
    where = "a GPU" if on_gpu else "a processor"
    chosen: dict[str, Any] = {}
    for key, gpu, cpu in (
        ("precision", Precision.bf16, Precision.fp32),
        ("compile", True, False),
        ("warmup_steps", _WARM_UP_STEPS, 0),
    ):
        value = getattr(config.backend, key)
        if value is None:
            value = gpu if on_gpu else cpu
            shown = value.name if isinstance(value, Precision) else value
            derived.append(Derived(f"backend.{key}", shown, f"on {where}"))
        chosen[key] = value.name if isinstance(value, Precision) else value
    return chosen
