"""How much memory a decoder takes on one accelerator, from counts alone: weights, context, working space."""

from __future__ import annotations

from dataclasses import dataclass

from mlperf_exp.config import Architecture

GIB = 1 << 30

# Bytes a value, by vLLM's names for types and quantizations.
BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits on each of ``tensor_parallel`` accelerators; bytes are of one accelerator."""

    tensor_parallel: int
    usable_bytes: float
    weight_bytes: float
    work_bytes: float
    kv_bytes_per_token: float

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that the memory left over can hold."""
        return max(0, int((self.usable_bytes - self.weight_bytes - self.work_bytes) / self.kv_bytes_per_token))


def layer_parameters(architecture: Architecture) -> int:
    """Parameters without the embedding and the output layer."""
    return max(architecture.parameters - 2 * architecture.vocab_size * architecture.hidden_size, 0)


def weight_bytes(architecture: Architecture, bytes_per_weight: float) -> float:
    """Bytes of all weights; embedding and output layer stay at two bytes where the others are quantized."""
    outer = 2 * architecture.vocab_size * architecture.hidden_size
    return layer_parameters(architecture) * bytes_per_weight + outer * max(bytes_per_weight, 2.0)


def fit(
    architecture: Architecture,
    *,
    memory_gib: float,
    utilization: float,
    tensor_parallel: int,
    weight: float,
    kv: float,
    batched_tokens: int,
) -> Fit:
    """Size one engine. ``weight`` and ``kv`` are bytes a value; ``batched_tokens`` are computed in one step.

    The working space is the activations of one step (about six hidden-sized and two feed-forward-sized tensors at two
    bytes a token), its logits at four bytes for 1,024 sequences, and 1 GiB for the driver, graphs and fragments.
    """
    hidden = 6 * architecture.hidden_size + 2 * architecture.intermediate_size / tensor_parallel
    logits = 4 * architecture.vocab_size * min(batched_tokens, 1024) / tensor_parallel
    heads = max(architecture.kv_heads / tensor_parallel, 1)
    return Fit(
        tensor_parallel=tensor_parallel,
        usable_bytes=memory_gib * GIB * utilization,
        weight_bytes=weight_bytes(architecture, weight) / tensor_parallel,
        work_bytes=GIB + 2 * batched_tokens * hidden + logits,
        kv_bytes_per_token=2 * architecture.layers * heads * architecture.head_dim * kv,
    )
