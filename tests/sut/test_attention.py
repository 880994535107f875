"""Attention for vLLM in two launches: the kernel's answers, the slices of a step, and where it is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlperf_exp.sut import attention

KERNEL = Path(__file__).with_name("decode_kernel.py")


def kernel(what: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(KERNEL), what], env=os.environ | {"TRITON_INTERPRET": "1" if what == "answers" else "0"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_kernel_answers_as_plain_attention_does() -> None:
    rows = kernel("answers")
    assert [row[0] for row in rows] == [16, 64, 128, 192, 128], "pages that a tile divides, and smaller ones"
    assert all(row[-1] < 0.03 for row in rows), rows  # bfloat16 has 8 bits: numbers up to 4


def test_what_it_compiles_to_reads_values_turned_around_and_never_by_the_byte() -> None:
    for page, count in kernel("compiles").items():
        assert count[".trans"] >= 16 and count["cvt.rn.f16x2"] >= 128, (page, count)
        assert count["ld.shared.b8"] == count["ld.shared.u8"] == 0, (page, count)


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


def test_it_is_installed_as_vllms_plugin_and_leaves_another_one_alone() -> None:
    (point,) = entry_points(group=attention.GROUP, name=attention.NAME)
    assert point.load() is attention.register
    code = """
from mlperf_exp.sut.attention import register
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
register(); register()
print(AttentionBackendEnum.CUSTOM.get_class().get_builder_cls().__name__)
AttentionBackendEnum.CUSTOM.clear_override()
register_backend(AttentionBackendEnum.CUSTOM, "elsewhere.Own")
register()
print(AttentionBackendEnum.CUSTOM.get_path())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-2:] == ["SplitBuilder", "elsewhere.Own"]


CHOSEN = {"block_size": 128, "attention_config": {"backend": "CUSTOM", "flash_attn_version": 3}}


def test_an_engine_that_does_not_ask_for_it_is_left_alone() -> None:
    for engine in ({}, {"attention_config": {"backend": "TRITON_ATTN"}}, {"attention_config": None}):
        assert attention.settle(engine, "0.32.0") == (engine, ())


def test_it_is_kept_with_a_vllm_that_it_was_tried_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert attention.settle(CHOSEN, "0.24.0") == (CHOSEN, ())
    monkeypatch.setenv("VLLM_PLUGINS", "other,mlperf_exp")
    assert attention.settle(CHOSEN, "0.24.1+cu130") == (CHOSEN, ())


@pytest.mark.parametrize(
    ("version", "plugins", "installed", "says"),
    [
        ("0.32.0", None, True, "with vLLM 0.24.x only, and this is 0.32.0"),
        ("0.240.0", None, True, "this is 0.240.0"),
        ("0.24.0", "other", True, "VLLM_PLUGINS does not name mlperf_exp"),
        ("0.24.0", "", True, "VLLM_PLUGINS does not name mlperf_exp"),
        ("0.24.0", None, False, "not installed (pip install -e .)"),
    ],
)
def test_elsewhere_it_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, version: str, plugins: str | None, installed: bool, says: str
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    if not installed:
        monkeypatch.setattr(attention, "NAME", "nothing_of_this_name")
    engine, (warning,) = attention.settle(CHOSEN, version)
    assert engine == {"block_size": 128, "attention_config": {"flash_attn_version": 3}}
    assert warning.startswith("backend.engine.attention_config.backend=CUSTOM was left out: ") and says in warning
    assert CHOSEN["attention_config"]["backend"] == "CUSTOM", "the plan stays as it was"  # type: ignore[index]
