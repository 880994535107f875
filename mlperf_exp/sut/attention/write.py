"""A step's keys and values into the paged cache, in Triton: a program a token, for both.

vLLM's own kernel (``reshape_and_cache_flash``) takes several times as long as the bytes need. The numbers are the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HIGHEST = tl.constexpr(448.0)  # of e4m3, which has no infinity


@triton.jit  # type: ignore[untyped-decorator]
def _store(at, x, scale, real, FP8: tl.constexpr):  # type: ignore[no-untyped-def]
    if FP8:
        x = tl.div_rn(x.to(tl.float32), tl.load(scale))
        x = tl.minimum(tl.maximum(x, -_HIGHEST), _HIGHEST)
    tl.store(at, x.to(at.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    key, value, keys, values, slots, k_scale, v_scale,
    key_stride, value_stride, page_stride, token_stride, head_stride,
    PAGE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        at = tl.arange(0, BLOCK)
        real = at < WIDTH
        place = slot // PAGE * page_stride + slot % PAGE * token_stride + at // SIZE * head_stride + at % SIZE
        k = tl.load(key + token * key_stride + at, mask=real, other=0.0)
        v = tl.load(value + token * value_stride + at, mask=real, other=0.0)
        _store(keys + place, k, k_scale, real, FP8)
        _store(values + place, v, v_scale, real, FP8)


def write(
    key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor,
    k_scale: torch.Tensor, v_scale: torch.Tensor,
) -> None:  # fmt: skip
    """Store each token's key and value in its slot.

    Args:
        key: ``[tokens or more, KV heads, head size]``; a token's heads in one piece.
        value: likewise.
        keys: the cache, ``[pages, page, KV heads, head size]``; fp8 e4m3, or as ``key``; the last dimension in one
            piece.
        values: likewise, with the same strides.
        slots: int64 ``[tokens]``: ``page * length + place in it``; a negative one's token is left out.
        k_scale: what an fp8 cache's keys are divided by; not read for another one.
        v_scale: likewise.
    """
    _, page, heads, size = keys.shape
    width = heads * size
    _kernel[(len(slots),)](
        key, value, keys, values, slots, k_scale, v_scale,
        key.stride(0), value.stride(0), keys.stride(0), keys.stride(1), keys.stride(2),
        PAGE=page, SIZE=size, WIDTH=width, BLOCK=triton.next_power_of_2(width), FP8=keys.element_size() == 1,
    )  # fmt: skip
