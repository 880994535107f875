"""The Triton kernel where no GPU is: its answers in Triton's interpreter, or what it compiles to for a Hopper card.

    TRITON_INTERPRET=1 python tests/sut/decode_kernel.py answers     # greatest difference by page length
    python tests/sut/decode_kernel.py compiles                       # counts of instructions by page length

With a GPU, ``answers`` runs the kernel itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from mlperf_exp.sut.attention import decode as kernel

LENGTHS = (37, 200, 1, 64, 301, 128)
SCALES = (0.5, 0.7, 1.3)


@triton.jit
def halves_by_hand(pairs):
    """The interpreter has no assembler: an e4m3's bits as fp16 are its value over 256."""
    even = ((pairs << 8) & -0x8000) | ((pairs << 7) & 0x3F80)
    odd = (pairs & -0x8000) | ((pairs >> 1) & 0x3F80)
    return even.to(tl.int16).to(tl.float16, bitcast=True) * 256, odd.to(tl.int16).to(tl.float16, bitcast=True) * 256


def difference(page: int, heads: int, kv_heads: int, size: int = 128) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    used = [-(-length // page) for length in LENGTHS]
    cache = torch.randn(sum(used), 2, page, kv_heads, size, device=device).to(torch.float8_e4m3fn)
    query = torch.randn(len(LENGTHS), heads, size, device=device).to(torch.float8_e4m3fn)
    order = torch.randperm(sum(used), dtype=torch.int32)
    table = torch.zeros(len(LENGTHS), max(used), dtype=torch.int32)
    for row, first, count in zip(range(len(used)), [sum(used[:i]) for i in range(len(used))], used, strict=True):
        table[row, :count] = order[first : first + count]
    table = table.to(device)
    output = torch.full((len(LENGTHS), heads, size), float("nan"), dtype=torch.bfloat16, device=device)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    q_scale, k_scale, v_scale = (torch.tensor(scale, device=device) for scale in SCALES)
    kernel.decode(query, cache[:, 0], cache[:, 1], output, table, lengths, size**-0.5, (q_scale, k_scale, v_scale))
    worst = 0.0
    for row, length in enumerate(LENGTHS):
        keys, values = (cache[table[row].long(), i].reshape(-1, kv_heads, size)[:length].float() for i in (0, 1))
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = keys[:, group] @ query[row, head].float() * q_scale * k_scale * size**-0.5
            wanted = torch.softmax(scores, 0) @ values[:, group] * v_scale
            got = output[row, head].float()
            worst = max(worst, float("inf") if got.isnan().any() else (wanted - got).abs().max().item())
    return worst


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
    else:
        if not torch.cuda.is_available():
            kernel.halves = halves_by_hand
        cases = ((16, 8, 2), (64, 8, 2), (128, 8, 2), (192, 4, 4), (128, 16, 1))
        print(json.dumps([[*case, difference(*case)] for case in cases]))
