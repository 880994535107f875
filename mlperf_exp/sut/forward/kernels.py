"""Triton kernels for what a forward pass on a GPU only moves, each bound by memory; imported there alone.

PyTorch's own take several times as long at these shapes: its channels-last max pooling also writes indices, bytes are
normalized in four passes, and a sum before a layer norm is written and read again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(x, y, weight, bias, out, hidden, epsilon, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < hidden
    at = row * hidden + columns
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    value += tl.load(y + at, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(there, value - tl.sum(value, axis=0) / hidden, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / hidden + epsilon)
    normed = centred * scale * tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    normed += tl.load(bias + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=there)


def add_norm(x: Any, y: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """``layer_norm(x + y)`` over the last axis; all contiguous, ``[tokens, hidden]``."""
    out = torch.empty_like(x)
    tokens, hidden = x.shape
    _add_norm_kernel[(tokens,)](x, y, weight, bias, out, hidden, epsilon, BLOCK=triton.next_power_of_2(hidden))
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _pixels_kernel(pixels, mean, scale, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, 4)
    there = (pixel < count)[:, None]
    colour = tl.load(pixels + pixel[:, None] * 3 + channel[None, :], mask=there & (channel < 3)[None, :], other=0)
    shift, factor = tl.load(mean + channel)[None, :], tl.load(scale + channel)[None, :]
    value = (colour.to(tl.float32) - shift) * factor
    tl.store(out + pixel[:, None] * 4 + channel[None, :], value.to(out.dtype.element_ty), mask=there)


def normalize(pixels: Any, mean: Any, scale: Any, dtype: Any) -> Any:
    """Bytes ``[n, side, side, 3]`` as ``(pixels - mean) * scale``, ``[n, 4, side, side]`` in channels-last layout.

    ``mean`` and ``scale`` are float32 ``[4]``; their last element is 0, and so is the fourth channel.
    """
    images, height, width, _ = pixels.shape
    out = torch.empty((images, height, width, 4), dtype=dtype, device=pixels.device)
    count = images * height * width
    _pixels_kernel[(triton.cdiv(count, 512),)](pixels, mean, scale, out, count, BLOCK=512)
    return out.permute(0, 3, 1, 2)


@triton.jit  # type: ignore[untyped-decorator]
def _max_pool_kernel(  # type: ignore[no-untyped-def]
    x, out, count, height, width, channels, out_height, out_width,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    channel = at % channels
    column = at // channels % out_width
    row = at // channels // out_width % out_height
    image = at // channels // out_width // out_height
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for dy in tl.static_range(SIZE):
        for dx in tl.static_range(SIZE):
            y, z = row * STRIDE - PADDING + dy, column * STRIDE - PADDING + dx
            inside = there & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            place = ((image * height + y) * width + z) * channels + channel
            best = tl.maximum(best, tl.load(x + place, mask=inside, other=float("-inf")).to(tl.float32))
    tl.store(out + at, best.to(out.dtype.element_ty), mask=there)


class MaxPool(nn.Module):  # type: ignore[misc]
    """``nn.MaxPool2d`` with square windows on channels-last images."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding

    def forward(self, x: Any) -> Any:
        """``[n, channels, height, width]`` in and out."""
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x.shape
        high, wide = ((side + 2 * self.padding - self.size) // self.stride + 1 for side in (height, width))
        out = torch.empty((images, high, wide, channels), dtype=x.dtype, device=x.device)
        _max_pool_kernel[(triton.cdiv(out.numel(), 1024),)](
            x, out, out.numel(), height, width, channels, high, wide,
            SIZE=self.size, STRIDE=self.stride, PADDING=self.padding, BLOCK=1024,
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)


def replace_max_pools(network: nn.Module) -> None:
    """Put :class:`MaxPool` in the place of each plain ``nn.MaxPool2d``; in place."""
    for name, module in list(network.named_modules()):
        plain = isinstance(module, nn.MaxPool2d) and module.dilation == 1 and not module.ceil_mode
        if plain and isinstance(module.kernel_size, int) and isinstance(module.padding, int):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, MaxPool(module))
