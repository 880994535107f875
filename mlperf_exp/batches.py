"""What the plan fills in for the ``torch`` backend: batch sizes and kernels by device, scenario and kind of model."""

from __future__ import annotations

from typing import Any

from mlperf_exp.config import Compile, Config, Device, ExtractiveQa, Scenario
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Derived

# The largest batch, in images and in tokens: where throughput has stopped growing, or latency would suffer.
_IMAGES = {
    Device.cuda: {Scenario.offline: 1024, Scenario.server: 512, Scenario.multi_stream: 8, Scenario.single_stream: 1},
    Device.cpu: {Scenario.offline: 32, Scenario.server: 16, Scenario.multi_stream: 8, Scenario.single_stream: 1},
}
_TOKENS = {
    Device.cuda: {Scenario.offline: 16384, Scenario.server: 16384, Scenario.multi_stream: 3072},
    Device.cpu: {Scenario.offline: 4096, Scenario.server: 2048, Scenario.multi_stream: 3072},
}
_IN_FLIGHT = {
    Scenario.offline: 3,
    Scenario.server: 2,
    Scenario.interactive: 2,
    Scenario.multi_stream: 1,
    Scenario.single_stream: 1,
}
_TOKEN_STEP = 64  # sizes of packed text are whole multiples


def engine(config: Config, derived: list[Derived]) -> dict[str, Any]:
    """``sizes`` (ascending), ``compile``, ``in_flight``, and where it is known ``dtype``.

    Raises:
        UserError: the largest batch holds no sample.
    """
    packed = isinstance(config.model, ExtractiveQa)
    device, scenario = config.hw.device, config.scenario.name
    least = _whole(config.model.max_tokens) if packed else 1
    table = (_TOKENS if packed else _IMAGES)[device]
    most = config.backend.max_batch or max(table.get(scenario, least), least)
    unit = "tokens" if packed else "images"
    if most < least:
        problem = f"{most} {unit} do not hold one sample"
        raise UserError("backend.max_batch", problem, f"Give at least {least}, or leave it out")
    if config.backend.max_batch is None:
        derived.append(Derived("backend.max_batch", most, f"{unit}; for {scenario.name} on this kind of device"))
    chosen: dict[str, Any] = {"sizes": sizes(most, packed, fine=scenario is Scenario.server)}
    kernels = config.backend.compile or _kernels(packed, device)
    usable = (Compile.none, Compile.fused) if packed and device is Device.cuda else (Compile.none,) if packed else None
    if usable is not None and kernels not in usable:
        allowed = " or ".join(kind.name for kind in usable)
        raise UserError("backend.compile", f"{kernels.name} is not for packed text on this device", f"Use {allowed}")
    chosen["compile"] = kernels.name
    chosen["in_flight"] = config.backend.in_flight or _IN_FLIGHT[scenario]
    if config.model.dtype != "auto" or device is Device.cuda:  # what a processor computes in is found on it
        chosen["dtype"] = "float16" if config.model.dtype == "auto" else config.model.dtype
    for key, why in (("compile", "the fastest kernels known here"), ("in_flight", "more only adds latency")):
        if getattr(config.backend, key) is None:
            derived.append(Derived(f"backend.{key}", chosen[key], why))
    return chosen


def sizes(most: int, packed: bool, fine: bool) -> list[int]:
    """Batch sizes up to ``most``: powers of two, or with ``fine`` three between two of them, so that little is wasted.

    Of packed text all are multiples of 64 tokens, and up to 512 every one, for a single question costs its own length.
    """
    unit = _TOKEN_STEP if packed else 1
    found, size = {most}, 1
    while size * unit < most:
        steps = 4 if fine and size >= 8 else 1
        found |= {size * unit * (steps + part) // steps for part in range(steps)}
        size *= 2
    if packed:
        found |= {tokens for tokens in range(unit, 513, unit) if tokens <= most}
    return sorted(size for size in found if size <= most)


def _whole(tokens: int) -> int:
    return -(-tokens // _TOKEN_STEP) * _TOKEN_STEP


def _kernels(packed: bool, device: Device) -> Compile:
    if packed:
        return Compile.fused if device is Device.cuda else Compile.none
    return Compile.fused
