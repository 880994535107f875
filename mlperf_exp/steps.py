"""How many tokens one step of a decoder's engine computes: what the bound of the time per output token allows.

While prompts wait, every step is full, and each sequence gets one token a step: a step's time is then the time per
output token. A full step computes: two operations a weight and token, at a share of the peak that whole steps reach.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlperf_exp.config import Architecture
from mlperf_exp.memory import layer_parameters

# Names of peaks in conf/hw/, by vLLM's names for types and quantizations.
PEAK_KEYS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp8": "fp8", "int8": "int8"}

SHARE = 0.42  # of the peak, with all that is no matrix product: an H200 in fp8 (bf16: 0.51), docs/tuning.md
_OF_BOUND = 0.9  # the 99th percentile lies above a full step's time
_GRAIN, _LEAST = 128, 256  # rows of a product's tile; below, the weights' reading takes longer than the products


def flops_per_token(architecture: Architecture) -> float:
    """Operations of the layers' products for one token."""
    return 2.0 * max(layer_parameters(architecture), 1)


def most_tokens(architecture: Architecture, peak_tflops: float, bound_ms: float) -> int:
    """Tokens of a step that keeps ``bound_ms``, a multiple of 128, at least 256."""
    tokens = _OF_BOUND * bound_ms / 1e3 * SHARE * peak_tflops * 1e12 / flops_per_token(architecture)
    return max(_LEAST, int(tokens) // _GRAIN * _GRAIN)


def milliseconds(architecture: Architecture, peak_tflops: float, tokens: int) -> float:
    """A step's time."""
    return 1e3 * tokens * flops_per_token(architecture) / (SHARE * peak_tflops * 1e12)


def peak_tflops(peaks: Mapping[str, float | None], quantization: str | None, dtype: str) -> float | None:
    """The peak of the type that products compute in: of a quantization that the card has no peak of, the model's."""
    own = peaks.get("fp8") if (quantization or "").startswith("fp8") else None
    return own or peaks.get(PEAK_KEYS.get(dtype, "bf16"))
