"""FlashAttention for vLLM that answers a step's decodes and its prefills by a launch each.

FlashAttention 3 has one tile for a whole launch. In a step that holds a prefill, that is the prefill's: 128 queries, of
which a decode fills the four of its group. vLLM puts decodes first in each batch, so that both are slices. Decodes
against an fp8 cache go to :mod:`mlperf_exp.sut.attention.decode` where there are enough of them, in a graph too; keys
and values are written by :mod:`mlperf_exp.sut.attention.write`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from vllm import envs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills

from mlperf_exp.sut.attention.decode import ROWS, decode
from mlperf_exp.sut.attention.write import write

ENOUGH = 512  # sequences times KV heads, from which on the kernel is the faster: docs/tuning.md


@dataclass
class SplitMetadata(FlashAttentionMetadata):
    """What vLLM's own says, and the launches: one of decodes alone, or one of the decodes and one of the rest."""

    parts: tuple[FlashAttentionMetadata, ...] = ()


class SplitBuilder(FlashAttentionMetadataBuilder):
    """See the module."""

    _cudagraph_support = AttentionCGSupport.UNIFORM_BATCH  # a mixed step's slices are not a graph's
    supports_update_block_table = False  # the parts have slices of it

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """vLLM's own, with its launches where the step has decodes and nothing but causal attention."""
        common = common_attn_metadata
        whole = super().build(common_prefix_len, common, fast_build)
        decodes, prefills, tokens, _ = split_decodes_and_prefills(common)
        if not decodes or decodes != tokens or self._special(whole):
            return whole
        if not prefills:
            return SplitMetadata(**vars(whole), parts=(whole,))
        first = self._part(whole, slice(0, decodes), slice(0, tokens), 1)
        rest = slice(decodes, common.num_reqs), slice(tokens, whole.num_actual_tokens)
        return SplitMetadata(**vars(whole), parts=(first, self._part(whole, *rest, whole.max_query_len)))

    def _special(self, whole: FlashAttentionMetadata) -> bool:
        masked = whole.mm_prefix_query_range_tensor is not None or whole.rswa_prefix_lens is not None
        speculative = self.vllm_config.speculative_config is not None
        return masked or whole.causal is not True or speculative or self.dcp_world_size > 1 or envs.VLLM_BATCH_INVARIANT

    def _part(
        self, whole: FlashAttentionMetadata, requests: slice, tokens: slice, longest: int
    ) -> FlashAttentionMetadata:
        starts = whole.query_start_loc[requests.start : requests.stop + 1]
        starts = starts - tokens.start if tokens.start else starts
        lengths = whole.seq_lens[requests]
        schedule = self._get_scheduler_metadata(
            aot_schedule=whole.scheduler_metadata is not None, batch_size=len(lengths), cu_query_lens=starts,
            max_query_len=longest, seqlens=lengths, max_seq_len=whole.max_seq_len, causal=True, max_num_splits=0,
        )  # fmt: skip
        part: FlashAttentionMetadata = replace(
            whole, num_actual_tokens=tokens.stop - tokens.start, max_query_len=longest, query_start_loc=starts,
            seq_lens=lengths, block_table=whole.block_table[requests], slot_mapping=whole.slot_mapping[tokens],
            scheduler_metadata=schedule, max_num_splits=0,
        )  # fmt: skip
        return part


class SplitAttention(FlashAttentionImpl):
    """See the module."""

    @cached_property
    def _quantized(self) -> bool:
        return bool(is_quantized_kv_cache(self.kv_cache_dtype))

    @cached_property
    def _plain(self) -> bool:
        """Whether the kernel computes what this layer wants: an fp8 cache, and nothing but causal attention."""
        size, group = self.head_size, self.num_queries_per_kv
        special = self.alibi_slopes is not None or self.sinks is not None or bool(self.logits_soft_cap)
        special = special or tuple(self.sliding_window) != (-1, -1) or self.attn_type != AttentionType.DECODER
        return bool(self._quantized and not special and not size & (size - 1) and group <= ROWS)

    def forward(
        self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        kv_cache: torch.Tensor, attn_metadata: FlashAttentionMetadata, output: torch.Tensor, *args: Any, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """Queries ``[tokens, heads, head size]``; the parts one after the other into their slices of ``output``."""
        parts = getattr(attn_metadata, "parts", ())
        if not parts:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        first = 0
        for part in parts:
            last = first + part.num_actual_tokens
            if self._by_kernel(part, layer):
                decode(query[first:last], *self._halves(kv_cache), output[first:last], part.block_table, part.seq_lens,
                       self.scale, (layer._q_scale, layer._k_scale, layer._v_scale))  # fmt: skip
            else:
                super().forward(layer, query[first:last], key[first:last], value[first:last], kv_cache, part,
                                output[first:last], *args, **kwargs)  # fmt: skip
            first = last
        return output

    def do_kv_cache_update(
        self, layer: torch.nn.Module, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:  # fmt: skip
        """Keys and values ``[tokens or more, KV heads, head size]`` into their slots."""
        usual = self.attn_type == AttentionType.DECODER and _one_scale(layer)
        whole = all(x.stride()[1:] == (self.head_size, 1) for x in (key, value))
        if usual and whole and (self._quantized or kv_cache.dtype == key.dtype):
            write(key, value, *self._halves(kv_cache), slot_mapping, layer._k_scale, layer._v_scale)
        else:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def _by_kernel(self, part: FlashAttentionMetadata, layer: torch.nn.Module) -> bool:
        alone = part.max_query_len == 1 and len(part.seq_lens) * self.num_kv_heads >= ENOUGH
        return alone and self._plain and _one_scale(layer)

    def _halves(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the cache, ``[pages, page, KV heads, head size]`` each."""
        cache = kv_cache.view(current_platform.fp8_dtype()) if self._quantized else kv_cache
        cache = cache.transpose(1, 2)  # vLLM has [pages, KV heads, page, 2 * head size]
        return cache[..., : self.head_size], cache[..., self.head_size :]


def _one_scale(layer: Any) -> bool:
    return bool(layer._k_scale.numel() == layer._v_scale.numel() == 1)


class SplitBackend(FlashAttentionBackend):
    """See the module."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        """What computes."""
        return SplitAttention

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        """What describes a step."""
        return SplitBuilder
