"""One layer's attention in a step of Llama 3.1 8B as the benchmark has them, on a Hopper card: in one launch or in two.

    python benchmarks/attention.py                        # half a minute, JSON

350 decodes with log-normal contexts (mean 785 and what they wrote themselves) and five prefills of 3,746 tokens in all,
as vLLM's profile of a full step shows them; the cache as vLLM 0.32 lays it out. ``one_launch`` is FlashAttention 3 over
all; ``decodes`` and ``prefills`` are its launches of each; ``kernel`` is :mod:`mlperf_exp.sut.attention.decode` (fp8
only). ``difference`` is the greatest of the decodes' answers between FlashAttention and the kernel. ``write`` and
``vllm_write`` store the step's keys and values, by :mod:`mlperf_exp.sut.attention.write` and by vLLM. ``alone``: so
many decodes and nothing else, as in a graph.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm import __version__, _custom_ops
from vllm.vllm_flash_attn.flash_attn_interface import flash_attn_varlen_func, get_scheduler_metadata

from mlperf_exp.sut.attention import decode as kernel
from mlperf_exp.sut.attention.write import write

HEADS, KV_HEADS, SIZE, LONGEST = 32, 8, 128, 2668
ALONE, GRAPH_SPLITS = (8, 16, 32, 64, 128, 256, 512, 1024), 32
PREFILLS, DECODES = (700, 1100, 500, 900, 546), 350
TILES = ((128, 2, 2), (128, 4, 2), (128, 4, 3), (64, 2, 3), (64, 1, 2), (32, 1, 3))


def step(decodes: int, prefills: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of each sequence, the decodes first."""
    generator = np.random.default_rng(0)
    prompts = generator.lognormal(np.log(785) - 0.53**2 / 2, 0.53, decodes).clip(32, 2540).astype(int)
    keys = np.concatenate([prompts + generator.integers(0, 128, decodes), prefills]).astype(int)
    return np.concatenate([np.ones(decodes, int), prefills]).astype(int), keys


class Layer:
    """A step's queries, and the cache that it reads."""

    def __init__(self, decodes: int, prefills: tuple[int, ...], dtype: torch.dtype, page: int) -> None:
        self.dtype, self.page = dtype, page
        queries, self.lengths = step(decodes, prefills)
        used = -(-self.lengths // page)
        order = torch.randperm(int(used.sum()), device="cuda", dtype=torch.int32)
        self.table = torch.zeros(len(used), -(-LONGEST // page), dtype=torch.int32, device="cuda")
        for row, (first, count) in enumerate(zip(np.cumsum(used) - used, used, strict=True)):
            self.table[row, :count] = order[first : first + count]
        pages = len(order)
        made = torch.randn(pages, KV_HEADS, page, 2 * SIZE, device="cuda", dtype=torch.bfloat16).to(dtype)
        self.keys, self.values = made.transpose(1, 2).split(SIZE, -1)
        self.query = torch.randn(int(queries.sum()), HEADS, SIZE, device="cuda", dtype=torch.bfloat16).to(dtype)
        self.starts = torch.tensor(np.concatenate([[0], np.cumsum(queries)]), dtype=torch.int32, device="cuda")
        self.seen = torch.tensor(self.lengths, dtype=torch.int32, device="cuda")
        self.one = torch.ones((), device="cuda")
        self.output = torch.empty(self.query.shape, device="cuda", dtype=torch.bfloat16)

    def flash(self, rows: slice, tokens: slice, longest: int, splits: int = 0) -> Callable[[], None]:
        """A launch of FlashAttention 3 over these sequences, whose queries are these tokens."""
        cut = self.starts[rows.start : rows.stop + 1] - self.starts[rows.start]
        count, most = len(self.seen[rows]), int(self.seen[rows].max())
        scale = self.one.expand(count, KV_HEADS)
        schedule = get_scheduler_metadata(
            batch_size=count, max_seqlen_q=longest, max_seqlen_k=most, num_heads_q=HEADS, num_heads_kv=KV_HEADS,
            headdim=SIZE, cache_seqlens=self.seen[rows], qkv_dtype=self.dtype, cu_seqlens_q=cut, page_size=self.page,
            causal=True, num_splits=splits,
        )  # fmt: skip
        return lambda: flash_attn_varlen_func(
            q=self.query[tokens], k=self.keys, v=self.values, out=self.output[tokens], cu_seqlens_q=cut,
            max_seqlen_q=longest, seqused_k=self.seen[rows], max_seqlen_k=most, causal=True,
            block_table=self.table[rows], fa_version=3, scheduler_metadata=schedule, q_descale=scale, k_descale=scale,
            v_descale=scale, num_splits=splits,
        )  # fmt: skip

    def kernel(self, decodes: int, output: torch.Tensor) -> Callable[[], None]:
        """A launch of the kernel over the decodes."""
        rows = slice(0, decodes)
        return lambda: kernel.decode(self.query[rows], self.keys, self.values, output[rows], self.table[rows],
                                     self.seen[rows], SIZE**-0.5, (self.one, self.one, self.one))  # fmt: skip


def measure(dtype: torch.dtype, page: int, tiles: bool) -> dict[str, Any]:
    """Microseconds of each launch of a mixed step with pages of so many tokens."""
    layer = Layer(DECODES, PREFILLS, dtype, page)
    sequences, tokens = len(layer.lengths), len(layer.query)
    first, rest = slice(0, DECODES), (slice(DECODES, sequences), slice(DECODES, tokens), max(PREFILLS))
    found: dict[str, Any] = {
        "dtype": str(dtype).split(".")[-1], "page": page,
        "one_launch_us": microseconds(layer.flash(slice(0, sequences), slice(0, tokens), max(PREFILLS))),
        "prefills_us": microseconds(layer.flash(*rest)), "decodes_us": microseconds(layer.flash(first, first, 1)),
        **writes(layer),
    }  # fmt: skip
    moved = int(layer.lengths[:DECODES].sum()) * KV_HEADS * SIZE * 2 * dtype.itemsize
    if dtype.itemsize == 1:
        ours = torch.empty_like(layer.output)
        found["kernel_us"] = microseconds(layer.kernel(DECODES, ours))
        found["difference"] = (layer.output[first] - ours[first]).abs().max().item()
        if tiles:
            shipped = kernel.TILE, kernel.WARPS, kernel.STAGES
            rows = []
            for kernel.TILE, kernel.WARPS, kernel.STAGES in TILES:
                launch = layer.kernel(DECODES, ours)
                rows.append([kernel.TILE, kernel.WARPS, kernel.STAGES, microseconds(launch)])
            kernel.TILE, kernel.WARPS, kernel.STAGES = shipped
            found["tile, warps, stages, us"] = rows
    best = min(found["decodes_us"], found.get("kernel_us", float("inf")))
    return found | {"decodes_gb_s": moved / best / 1e3,
                    "two_launches_over_one": (found["prefills_us"] + best) / found["one_launch_us"]}  # fmt: skip


def writes(layer: Layer) -> dict[str, float]:
    """Storing the keys and values of a mixed step's tokens, in slots by chance."""
    tokens, slots = len(layer.query), torch.randperm(layer.keys.shape[0] * layer.page, device="cuda")
    both = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * SIZE, device="cuda", dtype=torch.bfloat16)
    key, value = (both[:, at : at + KV_HEADS * SIZE].view(tokens, KV_HEADS, SIZE)
                  for at in (HEADS * SIZE, (HEADS + KV_HEADS) * SIZE))  # fmt: skip
    given = key, value, layer.keys, layer.values, slots[:tokens]
    kept = layer.keys.clone(), layer.values.clone()
    quantized = layer.dtype.itemsize == 1
    caches = [x.view(torch.uint8) if quantized else x for x in (layer.keys, layer.values)]
    theirs = microseconds(lambda: _custom_ops.reshape_and_cache_flash(
        key, value, *caches, slots[:tokens], "fp8" if quantized else "auto", layer.one, layer.one))  # fmt: skip
    wanted = layer.keys.clone(), layer.values.clone()
    layer.keys.copy_(kept[0]), layer.values.copy_(kept[1])
    ours = microseconds(lambda: write(*given, layer.one, layer.one))
    equal = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                for a, b in zip(wanted, (layer.keys, layer.values), strict=True))  # fmt: skip
    return {"write_us": ours, "vllm_write_us": theirs, "writes_equal": equal}


def alone(page: int) -> list[dict[str, float]]:
    """So many decodes and nothing else: FlashAttention as in a graph, and the kernel."""
    rows = []
    for decodes in ALONE:
        layer, every = Layer(decodes, (), torch.float8_e4m3fn, page), slice(0, decodes)
        flash = microseconds(layer.flash(every, every, 1, GRAPH_SPLITS))
        ours = microseconds(layer.kernel(decodes, torch.empty_like(layer.output)))
        rows.append({"decodes": decodes, "flash_us": flash, "kernel_us": ours})
    return rows


def microseconds(call: Callable[[], None], times: int = 30) -> float:
    """Of one call, in a CUDA graph of a row of them: the card's time alone, as a launch takes the host up to 75."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    graph.replay()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
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
    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "vllm": __version__, "rows": rows,
             "alone": alone(128)}  # fmt: skip
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
