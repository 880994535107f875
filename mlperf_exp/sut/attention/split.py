"""FlashAttention for vLLM that answers a step's decodes and its prefills by a launch each.

FlashAttention 3 has one tile for a whole launch. In a step that holds a prefill, that is the prefill's: 128 queries, of
which a decode fills the four of its group. vLLM puts decodes first in each batch, so that both are slices. Decodes
against an fp8 cache go to :mod:`mlperf_exp.sut.attention.decode`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from vllm.platforms import current_platform
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills

from mlperf_exp.sut.attention.decode import ROWS, decode


@dataclass
class SplitMetadata(FlashAttentionMetadata):
    """What vLLM's own says, and the same of the decodes and of the prefills where a step holds both."""

    parts: tuple[FlashAttentionMetadata, ...] = ()


class SplitBuilder(FlashAttentionMetadataBuilder):
    """See the module."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """vLLM's own for a step of one kind; with its parts where it is mixed."""
        common = common_attn_metadata
        whole = super().build(common_prefix_len, common, fast_build)
        decodes, prefills, tokens, _ = split_decodes_and_prefills(common)
        special = getattr(whole, "use_cascade", False) or whole.causal is not True or self.dcp_world_size > 1
        if not decodes or not prefills or special:
            return whole
        first = self._part(whole, slice(0, decodes), slice(0, tokens), 1)
        rest = slice(decodes, common.num_reqs), slice(tokens, whole.num_actual_tokens)
        return SplitMetadata(**vars(whole), parts=(first, self._part(whole, *rest, whole.max_query_len)))

    def _part(
        self, whole: FlashAttentionMetadata, requests: slice, tokens: slice, longest: int
    ) -> FlashAttentionMetadata:
        starts = whole.query_start_loc[requests.start : requests.stop + 1]
        starts = starts - tokens.start if tokens.start else starts
        lengths = whole.seq_lens[requests]
        schedule = fa_utils.get_scheduler_metadata(
            batch_size=len(lengths), max_seqlen_q=longest, max_seqlen_k=whole.max_seq_len,
            num_heads_q=self.num_heads_q, num_heads_kv=self.num_heads_kv, headdim=self.headdim, cache_seqlens=lengths,
            qkv_dtype=self._dtype(), cu_seqlens_q=starts, page_size=self.block_size, causal=True,
        ) if self.aot_schedule else None  # fmt: skip
        part: FlashAttentionMetadata = replace(
            whole, num_actual_tokens=tokens.stop - tokens.start, max_query_len=longest, query_start_loc=starts,
            seq_lens=lengths, block_table=whole.block_table[requests], slot_mapping=whole.slot_mapping[tokens],
            scheduler_metadata=schedule, max_num_splits=0,
        )  # fmt: skip
        return part

    def _dtype(self) -> torch.dtype:
        quantized = is_quantized_kv_cache(self.cache_config.cache_dtype)
        return cast("torch.dtype", current_platform.fp8_dtype() if quantized else self.kv_cache_dtype)


class SplitAttention(FlashAttentionImpl):
    """See the module."""

    @cached_property
    def _plain(self) -> bool:
        """Whether the kernel computes what this layer wants: an fp8 cache, and nothing but causal attention."""
        size, group = self.head_size, self.num_queries_per_kv
        special = self.alibi_slopes is not None or self.sinks is not None or bool(self.logits_soft_cap)
        special = special or tuple(self.sliding_window) != (-1, -1)
        return is_quantized_kv_cache(self.kv_cache_dtype) and not special and not size & (size - 1) and group <= ROWS

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
            if first == 0 and self._plain and layer._k_scale.numel() == layer._v_scale.numel() == 1:
                keys, values = kv_cache.view(query.dtype).unbind(1)
                decode(query[:last], keys, values, output[:last], part.block_table, part.seq_lens, self.scale,
                       (layer._q_scale, layer._k_scale, layer._v_scale))  # fmt: skip
            else:
                super().forward(layer, query[first:last], key[first:last], value[first:last], kv_cache, part,
                                output[first:last], *args, **kwargs)  # fmt: skip
            first = last
        return output


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
