"""One query a sequence against a paged fp8 KV cache, in Triton: a tile of 16 rows for the heads of a group.

FlashAttention 3 has 64 rows at least, and turns each tile of fp8 values around, as the tensor cores of a Hopper card
want fp8. Here keys and values become fp16 in registers. Values are read as pairs of fp8, since what the tensor cores
need turned around can be loaded so by 16 bits only; a pair's halves are the even and the odd columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE, WARPS, STAGES = 128, 2, 2  # tried: docs/tuning.md
ROWS = 16  # of the smallest product: heads of a group at most
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def halves(pairs):  # type: ignore[no-untyped-def]
    """Two fp8 (e4m3) numbers in an int16, as fp16 each; two pairs an instruction."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 even, odd;
        .reg .b16 low, high;
        prmt.b32 even, $2, 0, 0x4420;
        prmt.b32 odd, $2, 0, 0x4431;
        cvt.u16.u32 low, even;
        cvt.u16.u32 high, odd;
        cvt.rn.f16x2.e4m3x2 $0, low;
        cvt.rn.f16x2.e4m3x2 $1, high;
        }""",
        "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    q, k, v, factor, highest, total, even, odd, inside, PART: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, k.to(tl.float16)) * factor
    if PART:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(tl.float16)
    v_even, v_odd = halves(v)
    even = tl.dot(weights, v_even, even * shrink[:, None])
    odd = tl.dot(weights, v_odd, odd * shrink[:, None])
    return higher, total, even, odd


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    query, keys, values, output, table, lengths, q_scale, k_scale, v_scale, scale,
    query_stride, output_stride, table_stride, page_stride, token_stride, head_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(0), tl.program_id(1)
    rows, columns, pairs = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, SIZE // 2)
    tokens = tl.arange(0, TILE)
    real = rows < GROUP
    at = (head * GROUP + rows)[:, None] * SIZE + columns[None, :]
    q = tl.load(query + sequence * query_stride + at, mask=real[:, None], other=0.0).to(tl.float16)
    factor = scale * tl.load(q_scale) * tl.load(k_scale) * _LOG2_E
    highest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    even, odd = tl.zeros([ROWS, SIZE // 2], tl.float32), tl.zeros([ROWS, SIZE // 2], tl.float32)
    k_at = tokens[None, :] * token_stride + columns[:, None]
    v_at = tokens[:, None] * (token_stride // 2) + pairs[None, :]
    pages = table + sequence * table_stride
    length = tl.load(lengths + sequence)
    whole = length // TILE * TILE
    for start in range(0, whole, TILE):
        page = tl.load(pages + start // PAGE).to(tl.int64)
        place = page * page_stride + (start % PAGE) * token_stride + head * head_stride
        k = tl.load(keys + place + k_at)
        v = tl.load(values + place // 2 + v_at)
        highest, total, even, odd = _step(q, k, v, factor, highest, total, even, odd, real, False)
    if whole < length:
        inside = whole + tokens < length
        page = tl.load(pages + whole // PAGE).to(tl.int64)
        place = page * page_stride + (whole % PAGE) * token_stride + head * head_stride
        k = tl.load(keys + place + k_at, mask=inside[None, :], other=0.0)
        v = tl.load(values + place // 2 + v_at, mask=inside[:, None], other=0)
        highest, total, even, odd = _step(q, k, v, factor, highest, total, even, odd, inside, True)
    total = tl.where(length > 0, total, 1.0)  # a graph's spare rows have no keys
    found = tl.interleave(even, odd) / total[:, None] * tl.load(v_scale)
    tl.store(output + sequence * output_stride + at, found.to(output.dtype.element_ty), mask=real[:, None])


def decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, output: torch.Tensor, table: torch.Tensor,
    lengths: torch.Tensor, scale: float, scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:  # fmt: skip
    """Attention of one query a sequence.

    Args:
        query: fp8 e4m3 ``[sequences, heads, head size]``; the head size a power of two, at most 16 heads a KV head.
        keys: fp8 e4m3 ``[pages, page, KV heads, head size]``; the last dimension in one piece. The larger the power of
            two in the page's length (128 at best), the faster.
        values: likewise, with the same strides.
        output: ``[sequences, heads, head size]``, written.
        table: int32 ``[sequences, pages at most]``.
        lengths: int32 ``[sequences]``, of keys; 0 writes zeros.
        scale: of scores.
        scales: what query, keys and values were divided by.
    """
    _, page, heads, size = keys.shape
    tile = min(TILE, page & -page)
    _kernel[(heads, query.shape[0])](
        query, keys, values.view(torch.int16), output, table, lengths, *scales, scale,
        query.stride(0), output.stride(0), table.stride(0), keys.stride(0), keys.stride(1), keys.stride(2),
        GROUP=query.shape[1] // heads, ROWS=ROWS, SIZE=size, PAGE=page, TILE=tile, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
