"""What a hardware profile's peak figures allow at most for a model and a load: no schedule can do better.

A decoder's work is counted from its shape: two operations for each weight and token (the input embedding is looked up,
not multiplied), four for each head, head dimension and pair of tokens in attention. Its bytes: all weights once a
decoding step, and the keys and values of each sequence. A network that answers with one pass moves what its layers
read and write, one after the other, with additions, norms and activations inside of them. A throughput's bound is the
smaller of what the peak FLOP/s and what the bandwidth allow, each alone (Williams, Waterman, Patterson, "Roofline",
2009). Peaks are the vendor's, dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlperf_exp.memory import BYTES, GIB
from mlperf_exp.report.text import number
from mlperf_exp.report.view import part
from mlperf_exp.steps import PEAK_KEYS

_OUTPUT_TOKENS = 128.0  # MLPerf's longest answer, where none was measured


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit of one figure; ``by`` is what sets it: compute or bandwidth."""

    value: float
    relation: str  # ≤ for rates, ≥ for times
    by: str


@dataclass(frozen=True, slots=True)
class Costs:
    """One sample's work, and the machine's peaks. Rates are of all accelerators together."""

    prefill_flops: float
    decode_flops: float
    decode_steps: float
    weight_bytes: float
    context_bytes: float  # keys and values of one sequence, in the mean over its decoding
    batch: float  # sequences that one decoding step can serve, of one engine's accelerators together
    flops_per_s: float | None
    bytes_per_s: float | None
    accelerators: int
    kind: str  # the type whose peak counts: bf16, fp8
    layer_bytes: float = 0.0  # read and written by the layers of a network that answers with one pass

    @property
    def flops(self) -> float:
        """Operations of a whole sample."""
        return self.prefill_flops + self.decode_flops

    @property
    def bytes_per_sample(self) -> float:
        """Bytes moved for a whole sample, at the largest batch."""
        return self.layer_bytes + self.decode_steps * (self.weight_bytes / self.batch + self.context_bytes)

    @property
    def compute_rate(self) -> float | None:
        """Samples/s that the peak FLOP/s allow."""
        return None if self.flops_per_s is None or self.flops <= 0 else self.flops_per_s / self.flops

    @property
    def bandwidth_rate(self) -> float | None:
        """Samples/s that the bandwidth allows."""
        if self.bytes_per_s is None or self.bytes_per_sample <= 0:
            return None
        return self.bytes_per_s / self.bytes_per_sample


def costs(result: Mapping[str, Any]) -> Costs | None:
    """The costs of a run's samples, as measured or as MLPerf's data set has them; None for an unknown kind of model."""
    config, metrics = part(result, "plan", "config"), part(result, "metrics")
    engine = part(result, "plan", "engine")
    model, hw = part(config, "model"), part(config, "hw")
    shape = {k: number(v) for k, v in part(model, "architecture").items()}
    kind, weight, kv = _types(model, engine)
    accelerators = int((number(hw.get("nodes")) or 1) * (number(hw.get("gpus_per_node")) or 0)) or 1
    peaks = {k: number(v) for k, v in part(hw, "peak_tflops").items()}
    peak, bandwidth = peaks.get(kind), number(hw.get("bandwidth_gb_s"))
    flops_per_s = None if peak is None else peak * 1e12 * accelerators
    bytes_per_s = None if bandwidth is None else bandwidth * 1e9 * accelerators
    needed = ("parameters", "layers", "hidden_size", "heads", "kv_heads", "head_dim", "vocab_size")
    if any(shape.get(key) is None for key in needed):
        tokens = number(metrics.get("prompt_tokens_mean"))
        gflops = number(model.get("gflops_per_sample")) or _encoder_gflops(model, tokens)
        if gflops is None:
            return None
        moved = weight * 1e6 * (number(model.get("mvalues_per_sample")) or _encoder_mvalues(model, tokens))
        return Costs(1e9 * gflops, 0, 0, 0, 0, 1, flops_per_s, bytes_per_s, accelerators, kind, moved)
    got = {key: shape[key] or 0.0 for key in needed}
    prompt = (
        number(metrics.get("prompt_tokens_mean")) or number(part(config, "dataset").get("mean_prompt_tokens")) or 0.0
    )
    output = number(metrics.get("output_tokens_mean")) or number(model.get("max_new_tokens")) or _OUTPUT_TOKENS
    head = got["vocab_size"] * got["hidden_size"]
    body = max(got["parameters"] - 2 * head, 0.0)
    attention = 4 * got["layers"] * got["heads"] * got["head_dim"]  # a pair of tokens
    steps = max(output - 1, 0.0)
    context = prompt + output / 2
    context_bytes = 2 * got["layers"] * got["kv_heads"] * got["head_dim"] * kv * context
    weights = body * weight + head * max(weight, 2.0)
    memory = (number(hw.get("memory_gib")) or 0.0) * GIB * accelerators
    room = max((memory - weights) / context_bytes, 1.0) if context_bytes and memory else 1.0
    seats = (number(engine.get("max_num_seqs")) or room) * max(
        1, accelerators // int(number(engine.get("tensor_parallel_size")) or 1)
    )
    single = part(config, "scenario").get("name") == "single_stream"
    return Costs(
        prefill_flops=2 * body * prompt + 2 * head + attention * prompt**2 / 2,
        decode_flops=steps * (2 * (body + head) + attention * context),
        decode_steps=steps,
        weight_bytes=weights,
        context_bytes=context_bytes,
        batch=1.0 if single else max(1.0, min(room, seats)),
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        accelerators=accelerators,
        kind=kind,
    )


def _encoder_gflops(model: Mapping[str, Any], tokens: float | None) -> float | None:
    """One pass of an encoder over the measured mean of tokens; None for other models, or before a measurement."""
    shape = [number(model.get(key)) for key in ("layers", "hidden_size", "intermediate_size")]
    layers, hidden, inner = shape
    if layers is None or hidden is None or inner is None or tokens is None:
        return None
    return layers * (2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * tokens**2) / 1e9


def _encoder_mvalues(model: Mapping[str, Any], tokens: float | None) -> float:
    """What an encoder's layers read and write: projections, attention, two norms with their sums, two products."""
    layers, hidden, inner = (number(model.get(key)) for key in ("layers", "hidden_size", "intermediate_size"))
    if layers is None or hidden is None or inner is None or tokens is None:
        return 0.0
    return layers * tokens * (18 * hidden + 2 * inner) / 1e6


def _types(model: Mapping[str, Any], engine: Mapping[str, Any]) -> tuple[str, float, float]:
    """The type whose peak counts, and the bytes of a weight and of a value of the context."""
    name = str(engine.get("quantization") or engine.get("dtype") or model.get("dtype") or "bfloat16")
    name = "fp8" if name.startswith("fp8") else name
    own = BYTES.get(name, 2.0)
    cache = str(engine.get("kv_cache_dtype") or "auto")
    dtype = str(engine.get("dtype") or model.get("dtype") or "bfloat16")
    return PEAK_KEYS.get(name, name), own, BYTES.get(dtype, 2.0) if cache == "auto" else BYTES.get(cache, 2.0)


def bounds(result: Mapping[str, Any]) -> dict[str, Bound]:
    """Limits by metric's name; empty where the profile has no peaks or the model's kind is not known."""
    cost = costs(result)
    if cost is None:
        return {}
    found: dict[str, Bound] = {}
    rates = [(rate, by) for rate, by in ((cost.compute_rate, "compute"), (cost.bandwidth_rate, "bandwidth")) if rate]
    if rates:
        rate, by = min(rates)
        found["samples_per_second"] = Bound(rate, "≤", by)
        found["wall_samples_per_second"] = Bound(rate, "≤", by)
        if cost.decode_steps:
            found["tokens_per_second"] = Bound(rate * (cost.decode_steps + 1), "≤", by)
        samples = number(part(result, "plan", "config", "model").get("performance_samples"))
        if samples:
            found["full_dataset_hours"] = Bound(samples / rate / 3600, "≥", by)
    if cost.flops_per_s:
        name = "ttft_p50_ms" if cost.decode_steps else "latency_p50_ms"
        found[name] = Bound(1e3 * cost.prefill_flops / cost.flops_per_s, "≥", "compute")
    if cost.bytes_per_s and cost.decode_steps:
        step = cost.weight_bytes + cost.context_bytes
        found["tpot_p50_ms"] = Bound(1e3 * step / cost.bytes_per_s, "≥", "bandwidth")
    return found
