"""One layer's attention in a step of Llama 3.1 8B as the benchmark has them, on a Hopper card: in one launch or in two.

    python benchmarks/attention.py                        # half a minute, JSON

350 decodes with log-normal contexts (mean 785 and what they wrote themselves) and five prefills of 3,746 tokens in all,
as vLLM's profile of a full step shows them. ``one_launch`` is FlashAttention 3 over all; ``decodes`` and ``prefills``
are its launches of each; ``kernel`` is :mod:`mlperf_exp.sut.attention.decode` (fp8 only). ``difference`` is the
greatest of the decodes' answers between FlashAttention and the kernel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.vllm_flash_attn.flash_attn_interface import flash_attn_varlen_func, get_scheduler_metadata

from mlperf_exp.sut.attention import decode as kernel

HEADS, KV_HEADS, SIZE, LONGEST = 32, 8, 128, 2668
PREFILLS, DECODES = (700, 1100, 500, 900, 546), 350
TILES = ((128, 2, 2), (128, 4, 2), (128, 4, 3), (64, 2, 3), (64, 1, 2), (32, 1, 3))


def lengths() -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of each sequence, the decodes first."""
    generator = np.random.default_rng(0)
    prompts = generator.lognormal(np.log(785) - 0.53**2 / 2, 0.53, DECODES).clip(32, 2540).astype(int)
    keys = np.concatenate([prompts + generator.integers(0, 128, DECODES), PREFILLS])
    return np.concatenate([np.ones(DECODES, int), PREFILLS]), keys


def measure(dtype: torch.dtype, page: int, tiles: bool) -> dict[str, Any]:
    """Microseconds of each launch with pages of so many tokens."""
    queries, keys = lengths()
    used = -(-keys // page)
    order = torch.randperm(int(used.sum()), device="cuda", dtype=torch.int32)
    table = torch.zeros(len(keys), -(-LONGEST // page), dtype=torch.int32, device="cuda")
    for row, (first, count) in enumerate(zip(np.cumsum(used) - used, used, strict=True)):
        table[row, :count] = order[first : first + count]
    cache = torch.randn(len(order), 2, page, KV_HEADS, SIZE, device="cuda", dtype=torch.bfloat16).to(dtype)
    query = torch.randn(int(queries.sum()), HEADS, SIZE, device="cuda", dtype=torch.bfloat16).to(dtype)
    starts = torch.tensor(np.concatenate([[0], np.cumsum(queries)]), dtype=torch.int32, device="cuda")
    seen = torch.tensor(keys, dtype=torch.int32, device="cuda")
    one = torch.ones((), device="cuda")
    whole, ours = (torch.empty(query.shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def launch(rows: slice, tokens: slice, longest: int) -> Callable[[], None]:
        cut = starts[rows.start : rows.stop + 1] - starts[rows.start]
        scale, most = one.expand(len(seen[rows]), KV_HEADS), int(seen[rows].max())
        schedule = get_scheduler_metadata(
            batch_size=len(seen[rows]), max_seqlen_q=longest, max_seqlen_k=most, num_heads_q=HEADS,
            num_heads_kv=KV_HEADS, headdim=SIZE, cache_seqlens=seen[rows], qkv_dtype=dtype, cu_seqlens_q=cut,
            page_size=page, causal=True,
        )  # fmt: skip
        return lambda: flash_attn_varlen_func(
            q=query[tokens], k=cache[:, 0], v=cache[:, 1], out=whole[tokens], cu_seqlens_q=cut, max_seqlen_q=longest,
            seqused_k=seen[rows], max_seqlen_k=most, causal=True, block_table=table[rows], fa_version=3,
            scheduler_metadata=schedule, q_descale=scale, k_descale=scale, v_descale=scale,
        )  # fmt: skip

    rest = slice(DECODES, len(keys)), slice(DECODES, len(query)), max(PREFILLS)
    first = slice(0, DECODES)
    found: dict[str, Any] = {
        "dtype": str(dtype).split(".")[-1], "page": page,
        "one_launch_us": microseconds(launch(slice(0, len(keys)), slice(0, len(query)), max(PREFILLS))),
        "prefills_us": microseconds(launch(*rest)), "decodes_us": microseconds(launch(first, first, 1)),
    }  # fmt: skip
    moved = int(keys[:DECODES].sum()) * KV_HEADS * SIZE * 2 * cache.element_size()
    if cache.element_size() == 1:

        def decode() -> None:
            kernel.decode(query[first], cache[:, 0], cache[:, 1], ours[first], table[first], seen[first], SIZE**-0.5,
                          (one, one, one))  # fmt: skip

        found["kernel_us"] = microseconds(decode)
        found["difference"] = (whole[first] - ours[first]).abs().max().item()
        if tiles:
            shipped = kernel.TILE, kernel.WARPS, kernel.STAGES
            rows = []
            for kernel.TILE, kernel.WARPS, kernel.STAGES in TILES:
                rows.append([kernel.TILE, kernel.WARPS, kernel.STAGES, microseconds(decode)])
            kernel.TILE, kernel.WARPS, kernel.STAGES = shipped
            found["tile, warps, stages, us"] = rows
    best = min(found["decodes_us"], found.get("kernel_us", float("inf")))
    return found | {"decodes_gb_s": moved / best / 1e3,
                    "two_launches_over_one": (found["prefills_us"] + best) / found["one_launch_us"]}  # fmt: skip


def microseconds(call: Callable[[], None], times: int = 30) -> float:
    """Of one call, in a row of them."""
    for _ in range(5):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pages", nargs="+", type=int, default=[16, 64, 128, 192, 384])
    parser.add_argument("--tiles", action="store_true", help="other shapes of the kernel too")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [measure(torch.float8_e4m3fn, page, options.tiles) for page in options.pages]
    rows += [measure(torch.bfloat16, page, False) for page in options.pages[:3]]
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
