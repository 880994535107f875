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


def built(split: Any, monkeypatch: pytest.MonkeyPatch, common: Any, **changed: Any) -> Any:
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
    builder.dcp_world_size, builder.aot_schedule = 1, False
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


@pytest.mark.parametrize("queries", [[1, 1, 1], [4, 9]])
def test_a_step_of_one_kind_stays_vllms_own(split: Any, monkeypatch: pytest.MonkeyPatch, queries: list[int]) -> None:
    assert type(built(split, monkeypatch, step(queries, [20] * len(queries)))) is split.FlashAttentionMetadata


def test_attention_in_both_directions_stays_vllms_own(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = built(split, monkeypatch, step([1, 4], [20, 20]), causal=False)
    assert type(it) is split.FlashAttentionMetadata


@pytest.mark.parametrize("cache", ["auto", "fp8"])
def test_each_token_is_answered_once_and_decodes_of_fp8_by_the_kernel(
    split: Any, monkeypatch: pytest.MonkeyPatch, cache: str
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
        assert rest[1] == ("q", "k", "v")
        calls.append(("kernel", query[:, 0, 0].tolist()))
        output.add_(query[:, 0, :1, None].expand_as(output))

    monkeypatch.setattr(split.FlashAttentionImpl, "forward", own)
    monkeypatch.setattr(split, "decode", decode)
    metadata = built(split, monkeypatch, step([1, 1, 3], [30, 7, 20]))
    it = object.__new__(split.SplitAttention)
    it.kv_cache_dtype, it.scale = cache, 1.0
    tokens = torch.arange(1.0, 6)[:, None, None].expand(5, 4, 8)
    output = torch.zeros(5, 4, 8)
    layer = SimpleNamespace(_q_scale="q", _k_scale="k", _v_scale="v")
    given = (layer, tokens, tokens, tokens, torch.zeros(4, 2, 16, 2, 8))
    assert it.forward(*given, metadata, output) is output
    assert output[:, 0, 0].tolist() == [1, 2, 3, 4, 5], "each once, in its own place"
    assert calls == [("own" if cache == "auto" else "kernel", [1, 2]), ("own", [3, 4, 5])]
    calls.clear()
    it.forward(*given, built(split, monkeypatch, step([1] * 5, [9] * 5)), output)
    assert calls == [("own", [1, 2, 3, 4, 5])], "decodes alone may be in a graph, which holds vLLM's own"
