"""Tests of the cutting of a step by vLLM's own classes; test_attention.py runs them in a process of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def split() -> Any:
    from mlperf_exp.sut.attention import split

    return split


def step(queries: list[int], lengths: list[int]) -> Any:
    """What vLLM says of a step: ``queries`` new tokens of each sequence, of ``lengths`` in all."""
    import torch
    from vllm.v1.attention.backend import CommonAttentionMetadata

    starts = torch.tensor([sum(queries[:i]) for i in range(len(queries) + 1)], dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=len(queries), num_actual_tokens=sum(queries), max_query_len=max(queries), max_seq_len=max(lengths),
        block_table_tensor=torch.arange(len(queries) * 3).reshape(-1, 3), slot_mapping=torch.arange(sum(queries)),
    )  # fmt: skip


def built(split: Any, monkeypatch: pytest.MonkeyPatch, common: Any, speculative: Any = None, **changed: Any) -> Any:
    """The metadata by vLLM's own class of it, whose own builder wants a card."""
    from dataclasses import fields

    def own(_: Any, prefix: int, common: Any, fast: bool) -> Any:
        values = {
            "num_actual_tokens": common.num_actual_tokens, "max_query_len": common.max_query_len,
            "query_start_loc": common.query_start_loc, "max_seq_len": common.max_seq_len, "seq_lens": common.seq_lens,
            "block_table": common.block_table_tensor, "slot_mapping": common.slot_mapping, "causal": True,
            "max_num_splits": 32, **changed,
        }  # fmt: skip
        others = {f.name: None for f in fields(split.FlashAttentionMetadata)
                  if f.name not in values and f.default is f.default_factory}  # fmt: skip
        return split.FlashAttentionMetadata(**values, **others)

    monkeypatch.setattr(split.FlashAttentionMetadataBuilder, "build", own)
    builder = object.__new__(split.SplitBuilder)
    builder.dcp_world_size, builder.vllm_config = 1, SimpleNamespace(speculative_config=speculative)
    return builder.build(0, common)


def test_a_mixed_step_has_two_parts_that_are_its_slices(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = built(split, monkeypatch, step([1, 1, 1, 5, 9], [30, 7, 51, 5, 20]))
    decodes, prefills = it.parts
    assert (decodes.num_actual_tokens, decodes.max_query_len) == (3, 1)
    assert decodes.query_start_loc.tolist() == [0, 1, 2, 3] and decodes.seq_lens.tolist() == [30, 7, 51]
    assert (prefills.num_actual_tokens, prefills.max_query_len) == (14, 9)
    assert prefills.query_start_loc.tolist() == [0, 5, 14] and prefills.seq_lens.tolist() == [5, 20]
    assert decodes.block_table.tolist() + prefills.block_table.tolist() == it.block_table.tolist()
    assert decodes.slot_mapping.tolist() + prefills.slot_mapping.tolist() == it.slot_mapping.tolist()
    assert decodes.max_num_splits == prefills.max_num_splits == 0, "these are not in a graph"
    assert it.max_num_splits == 32 and it.num_actual_tokens == 17


def test_each_part_of_a_scheduled_step_has_a_schedule_of_its_own(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from vllm.v1.attention.backends import flash_attn

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", lambda **it: asked.append(it) or it, raising=False)
    described = {"num_heads_q": 4, "num_heads_kv": 2, "headdim": 8, "block_size": 16, "aot_sliding_window": (-1, -1),
                 "kv_cache_dtype": torch.bfloat16, "cache_config": SimpleNamespace(cache_dtype="auto")}  # fmt: skip
    for name, value in described.items():
        monkeypatch.setattr(split.SplitBuilder, name, value, raising=False)
    it = built(split, monkeypatch, step([1, 1, 5], [30, 7, 20]), scheduler_metadata="vLLM's own")
    assert [part.scheduler_metadata for part in it.parts] == asked
    assert [one["cache_seqlens"].tolist() for one in asked] == [[30, 7], [20]]
    assert [one["cu_seqlens_q"].tolist() for one in asked] == [[0, 1, 2], [0, 5]]
    assert [(one["batch_size"], one["max_seqlen_q"], one["max_seqlen_k"]) for one in asked] == [(2, 1, 30), (1, 5, 30)]
    same = {"num_heads_q": 4, "num_heads_kv": 2, "headdim": 8, "page_size": 16, "qkv_dtype": torch.bfloat16,
            "causal": True, "window_size": (-1, -1), "num_splits": 0}  # fmt: skip
    assert all(same.items() <= one.items() for one in asked)


def test_decodes_alone_are_one_launch_as_vllm_says_it_for_a_graph(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = built(split, monkeypatch, step([1, 1, 1], [20, 30, 40]))
    (part,) = it.parts
    assert part.block_table is it.block_table and part.seq_lens is it.seq_lens, "the graph's own buffers"
    assert part.max_num_splits == it.max_num_splits == 32


@pytest.mark.parametrize(
    "case",
    [
        {"common": [4, 9]},  # prefills alone
        {"common": [1, 4], "causal": False},
        {"common": [1, 4], "rswa_prefix_lens": "some"},
        {"common": [1, 1], "mm_prefix_query_range_tensor": "some"},
        {"common": [1, 1], "speculative": "some"},
        {"common": [0, 1, 1, 4]},  # a row without a query among the decodes
    ],
)
def test_other_steps_stay_vllms_own(split: Any, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    queries = case.pop("common")
    it = built(split, monkeypatch, step(queries, [20] * len(queries)), **case)
    assert type(it) is split.FlashAttentionMetadata


def test_a_mixed_step_is_never_a_graphs(split: Any) -> None:
    from vllm.v1.attention.backend import AttentionCGSupport

    assert split.SplitBuilder.get_cudagraph_support(None, None) is AttentionCGSupport.UNIFORM_BATCH
    assert not split.SplitBuilder.supports_update_block_table


PLAIN = {"kv_cache_dtype": "fp8", "scale": 1.0, "head_size": 8, "num_queries_per_kv": 2, "alibi_slopes": None,
         "sinks": None, "logits_soft_cap": 0, "sliding_window": (-1, -1), "attn_type": "decoder",
         "num_kv_heads": 256}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "scales", "decodes_by"),
    [
        ({}, 1, "kernel"),
        ({"kv_cache_dtype": "auto"}, 1, "own"),
        ({"sliding_window": (127, 0)}, 1, "own"),
        ({"logits_soft_cap": 30.0}, 1, "own"),
        ({"sinks": "some"}, 1, "own"),
        ({"alibi_slopes": "some"}, 1, "own"),
        ({"head_size": 96}, 1, "own"),
        ({"num_queries_per_kv": 32}, 1, "own"),
        ({"num_kv_heads": 100}, 1, "own"),  # too few to fill a card
        ({}, 2, "own"),  # a scale for each head
    ],
)
def test_each_token_is_answered_once_and_decodes_of_fp8_by_the_kernel_where_it_can(
    split: Any, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], scales: int, decodes_by: str
) -> None:
    import torch

    calls: list[tuple[str, list[int]]] = []

    def own(self: Any, layer: Any, query: Any, key: Any, value: Any, kv: Any, metadata: Any, output: Any) -> Any:
        assert len(query) == len(key) == len(value) == len(output) == metadata.num_actual_tokens
        calls.append(("own", query[:, 0, 0].tolist()))
        output.add_(query[:, 0, :1, None].expand_as(output))
        return output

    def decode(query: Any, keys: Any, values: Any, output: Any, table: Any, lengths: Any, *rest: Any) -> None:
        assert keys.shape == values.shape == (4, 16, 2, 8) and len(query) == len(lengths) == len(table)
        assert keys.dtype == values.dtype == torch.float8_e4m3fn
        assert [float(one) for one in rest[1]] == [2, 3, 4]
        calls.append(("kernel", query[:, 0, 0].tolist()))
        output.add_(query[:, 0, :1, None].expand_as(output))

    monkeypatch.setattr(split.FlashAttentionImpl, "forward", own)
    monkeypatch.setattr(split, "decode", decode)
    metadata = built(split, monkeypatch, step([1, 1, 3], [30, 7, 20]))
    it = object.__new__(split.SplitAttention)
    for name, value in (PLAIN | changed).items():
        setattr(it, name, value)
    tokens = torch.arange(1.0, 6)[:, None, None].expand(5, 4, 8)
    output = torch.zeros(5, 4, 8)
    q_scale, k_scale, v_scale = torch.tensor(2.0), torch.full((scales,), 3.0), torch.full((scales,), 4.0)
    layer = SimpleNamespace(_q_scale=q_scale, _k_scale=k_scale, _v_scale=v_scale)
    given = (layer, tokens, tokens, tokens, torch.zeros(4, 2, 16, 16, dtype=torch.uint8))
    assert it.forward(*given, metadata, output) is output
    assert output[:, 0, 0].tolist() == [1, 2, 3, 4, 5], "each once, in its own place"
    assert calls == [(decodes_by, [1, 2]), ("own", [3, 4, 5])]
    calls.clear()
    it.forward(*given, built(split, monkeypatch, step([1] * 5, [9] * 5)), output)
    assert calls == [(decodes_by, [1, 2, 3, 4, 5])], "decodes alone"
    calls.clear()
    it.forward(*given, SimpleNamespace(num_actual_tokens=5), output)
    assert calls == [("own", [1, 2, 3, 4, 5])], "what has no parts"


@pytest.mark.parametrize(
    ("changed", "dtype", "scales", "columns", "by"),
    [
        ({}, "uint8", 1, 8, "kernel"),
        ({"kv_cache_dtype": "auto"}, "bfloat16", 1, 8, "kernel"),
        ({"kv_cache_dtype": "auto"}, "float16", 1, 8, "own"),
        ({"attn_type": "encoder"}, "uint8", 1, 8, "own"),
        ({}, "uint8", 2, 8, "own"),
        ({}, "uint8", 1, 9, "own"),  # heads that are not in one piece
    ],
)
def test_keys_and_values_are_written_by_the_kernel_where_it_can(
    split: Any, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], dtype: str, scales: int, columns: int, by: str
) -> None:
    import torch

    calls = []

    def write(key: Any, value: Any, keys: Any, values: Any, slots: Any, *scales: Any) -> None:
        assert keys.shape == values.shape == (4, 16, 2, 8) and key.shape == value.shape == (3, 2, 8)
        assert [float(one) for one in scales] == [3, 4] and slots == "slots"
        calls.append("kernel")

    monkeypatch.setattr(split, "write", write)
    monkeypatch.setattr(split.FlashAttentionImpl, "do_kv_cache_update", lambda *_: calls.append("own"))
    it = object.__new__(split.SplitAttention)
    for name, value in (PLAIN | changed).items():
        setattr(it, name, value)
    layer = SimpleNamespace(_k_scale=torch.full((scales,), 3.0), _v_scale=torch.full((scales,), 4.0))
    given = torch.zeros(3, 2, columns, dtype=torch.bfloat16)[..., :8]
    it.do_kv_cache_update(layer, given, given, torch.zeros(4, 2, 16, 16, dtype=getattr(torch, dtype)), "slots")
    assert calls == [by]
