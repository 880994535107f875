"""How much memory training a Llama under FSDP2 takes on one GPU, from counts alone."""

from __future__ import annotations

from mlperf_exp.config import Architecture
from mlperf_exp.memory import GIB

_STATE = 16.0  # bytes a parameter, in shards: weight, gradient and AdamW's two moments in float32
_DRIVER = 2.0 * GIB  # with NCCL's buffers and what the allocator cannot use
_CHUNK = 1024  # tokens whose logits exist at a time
SHARE = 0.94  # of a card's memory that may be planned with


def bytes_needed(shape: Architecture, ranks: int, tokens: int, *, recompute: bool, compiled: bool) -> float:
    """Bytes on each GPU where it takes ``tokens`` at once.

    Beside its shards a rank holds, in 2 bytes a value: two layers and the embedding and head put together, the latter
    two's gradients (and a copy in 4 bytes to be summed); each token's activations: with ``recompute`` every layer's
    input and one whole layer, else all that the backward pass wants of every layer; the logits of a part. What a layer
    keeps was counted by autograd's hooks for saved tensors, with RMSNorm as one kernel; of the feed-forward's four
    wide values torch.compile makes one again.
    """
    outer = 2 * shape.vocab_size * shape.hidden_size
    layer = (shape.parameters - outer) / shape.layers
    together = 2 * (outer + 2 * layer) + (2 + 4) * outer
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    values = 4 * shape.hidden_size + 3 * heads + 2 * kv + (3 if compiled else 4) * shape.intermediate_size
    kept = 2 * shape.hidden_size * shape.layers + 2 * 2 * values if recompute else 2 * values * shape.layers
    logits = 12 * _CHUNK * shape.vocab_size
    return _STATE * shape.parameters / ranks + together + tokens * kept + logits + _DRIVER


def most_at_once(
    shape: Architecture, ranks: int, length: int, memory_gib: float, *, recompute: bool, compiled: bool
) -> int:
    """How many samples of ``length`` tokens fit at once; 0: not one."""
    usable = SHARE * memory_gib * GIB
    fixed = bytes_needed(shape, ranks, 0, recompute=recompute, compiled=compiled)
    each = bytes_needed(shape, ranks, length, recompute=recompute, compiled=compiled) - fixed
    return max(0, int((usable - fixed) / each))
