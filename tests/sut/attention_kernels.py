"""The Triton kernels where no GPU is: their answers in Triton's interpreter, or what one compiles to for a Hopper card.

    TRITON_INTERPRET=1 python tests/sut/attention_kernels.py answers   # of decodes: greatest difference by page length
    TRITON_INTERPRET=1 python tests/sut/attention_kernels.py writes    # places of the cache that are not as they should
    python tests/sut/attention_kernels.py compiles                     # counts of instructions by page length

With a GPU, the first two run the kernels themselves.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from mlperf_exp.sut.attention import decode as kernel
from mlperf_exp.sut.attention.write import write

LENGTHS = (37, 200, 1, 64, 301, 128, 0)  # a graph's spare row has no keys
SCALES = (0.5, 0.7, 1.3)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def halves_by_hand(pairs):
    """The interpreter has no assembler: an e4m3's bits as fp16 are its value over 256."""
    even = ((pairs << 8) & -0x8000) | ((pairs << 7) & 0x3F80)
    odd = (pairs & -0x8000) | ((pairs >> 1) & 0x3F80)
    return even.to(tl.int16).to(tl.float16, bitcast=True) * 256, odd.to(tl.int16).to(tl.float16, bitcast=True) * 256


def halves_of(pages: int, page: int, kv_heads: int, size: int, dtype: torch.dtype) -> Any:
    """Keys and values ``[pages, page, KV heads, size]``, all zero, as vLLM lays them out."""
    return torch.zeros(pages, kv_heads, page, 2 * size, device=DEVICE).to(dtype).transpose(1, 2).split(size, -1)


def difference(page: int, heads: int, kv_heads: int, size: int = 128) -> float:
    torch.manual_seed(0)
    used = [-(-length // page) for length in LENGTHS]
    cache = halves_of(sum(used), page, kv_heads, size, torch.float8_e4m3fn)
    for half in cache:
        half.copy_(torch.randn(half.shape, device=DEVICE).to(half.dtype))
    query = torch.randn(len(LENGTHS), heads, size, device=DEVICE).to(torch.float8_e4m3fn)
    order = torch.randperm(sum(used), dtype=torch.int32)
    table = torch.zeros(len(LENGTHS), max(used), dtype=torch.int32)
    for row, first, count in zip(range(len(used)), [sum(used[:i]) for i in range(len(used))], used, strict=True):
        table[row, :count] = order[first : first + count]
    table = table.to(DEVICE)
    output = torch.full((len(LENGTHS), heads, size), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE)
    q_scale, k_scale, v_scale = (torch.tensor(scale, device=DEVICE) for scale in SCALES)
    kernel.decode(query, *cache, output, table, lengths, size**-0.5, (q_scale, k_scale, v_scale))
    worst = 0.0
    for row, length in enumerate(LENGTHS):
        keys, values = (half[table[row].long()].reshape(-1, kv_heads, size)[:length].float() for half in cache)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = keys[:, group] @ query[row, head].float() * q_scale * k_scale * size**-0.5
            wanted = torch.softmax(scores, 0) @ values[:, group] * v_scale
            got = output[row, head].float()
            worst = max(worst, float("inf") if got.isnan().any() else (wanted - got).abs().max().item())
    return worst


def wrong(page: int, kv_heads: int, size: int, dtype: torch.dtype) -> int:
    """Places of a cache that are not what vLLM's own kernel writes: numbers over the scale, the greatest for more."""
    torch.manual_seed(0)
    pages, tokens = 5, 41
    keys, values = halves_of(pages, page, kv_heads, size, dtype)
    slots = torch.randperm(pages * page)[:tokens].to(DEVICE)
    slots[3], slots[40] = -1, -1
    both = torch.randn(tokens + 7, 2, kv_heads, size, device=DEVICE, dtype=torch.bfloat16) * 40
    scales = torch.tensor(1.5, device=DEVICE), torch.tensor(0.3, device=DEVICE)
    if DEVICE == "cpu":  # the interpreter rounds 31.9 to 16: numbers that need no rounding
        both = both.to(torch.float8_e4m3fn).to(torch.bfloat16)
        scales = torch.tensor(0.5), torch.tensor(0.25)
    both[1, :, 0, 0], both[2, :, 0, 1] = 5000, -5000
    key, value = both.unbind(1)
    write(key, value, keys, values, slots, *scales)
    found = 0
    for cache, given, scale in ((keys, key, scales[0]), (values, value, scales[1])):
        wanted = torch.zeros(pages * page, kv_heads, size, device=DEVICE)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                x = given[token].float()
                wanted[slot] = (x / scale).clamp(-448, 448).to(dtype).float() if dtype.itemsize == 1 else x
        found += int((cache.float().reshape(wanted.shape) != wanted).sum())
    return found


def instructions(page: int) -> dict[str, int]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = dict.fromkeys(("query", "keys"), "*fp8e4nv") | dict.fromkeys(("table", "lengths"), "*i32")
    kinds |= {"values": "*i16", "output": "*bf16", "scale": "fp32"}
    kinds |= dict.fromkeys(("q_scale", "k_scale", "v_scale"), "*fp32")
    constants = {"GROUP": 4, "ROWS": 16, "SIZE": 128, "PAGE": page, "TILE": min(kernel.TILE, page & -page)}
    names = kernel._kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned: Any = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] not in (
        "constexpr", "fp32")}  # fmt: skip
    source = ASTSource(fn=kernel._kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": kernel.WARPS, "num_stages": kernel.STAGES}
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return {name: text.count(name) for name in ("ldmatrix", ".trans", "ld.shared.b8", "ld.shared.u8", "cvt.rn.f16x2")}


if __name__ == "__main__":
    if sys.argv[1] == "compiles":
        print(json.dumps({page: instructions(page) for page in (64, 128)}))
    elif sys.argv[1] == "writes":
        sizes = (16, 2, 128), (128, 1, 64), (128, 3, 48)  # the last: neither a power of two
        print(json.dumps([[str(dtype), *case, wrong(*case, dtype)]
                          for dtype in (torch.float8_e4m3fn, torch.bfloat16) for case in sizes]))  # fmt: skip
    else:
        if DEVICE == "cpu":
            kernel.halves = halves_by_hand
        cases = ((16, 8, 2), (64, 8, 2), (128, 8, 2), (192, 4, 4), (128, 16, 1))
        print(json.dumps([[*case, difference(*case)] for case in cases]))
