"""Llama 3.1 in plain PyTorch: RMSNorm, rotary places, grouped queries, SwiGLU, a head of its own; parameters as HF's.

``tests/train/test_text_network.py`` holds it against transformers' ``LlamaForCausalLM``, whose import alone would take
each rank ten seconds.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlperf_exp.train.job import TextTask

_CHUNK = 1024  # tokens whose logits are held at a time


class Llama(nn.Module):
    """Token ids (N, S + 1) -> the mean loss of each of the N samples over its S predictions, float32."""

    def __init__(self, task: TextTask) -> None:
        super().__init__()
        self.task = task
        self.embed_tokens = nn.Embedding(task.vocab_size, task.hidden_size)
        self.layers = nn.ModuleList(Layer(task) for _ in range(task.layers))
        self.norm = nn.RMSNorm(task.hidden_size, eps=task.rms_norm_eps)
        self.lm_head = nn.Linear(task.hidden_size, task.vocab_size, bias=False)
        self.chunk_loss: Any = chunk_loss

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (N, S) -> (N, S, hidden), normalized: what the head takes."""
        cos, sin = rotary(self.task, tokens.shape[1], tokens.device)
        states = self.embed_tokens(tokens)
        for layer in self.layers:
            states = layer(states, cos, sin)
        normed: torch.Tensor = self.norm(states)
        return normed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See the class. Logits of the whole would be gigabytes: each part's are made, used and made again."""
        states, targets = self.hidden(tokens[:, :-1]), tokens[:, 1:]
        total = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
        places = max(1, _CHUNK // len(tokens))
        for at in range(0, targets.shape[1], places):
            part = slice(at, at + places)
            total = total + checkpoint(
                self.chunk_loss,
                states[:, part],
                self.lm_head.weight,
                targets[:, part],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total / targets.shape[1]


class Layer(nn.Module):
    """One decoder layer, (N, S, hidden) -> the same."""

    def __init__(self, task: TextTask) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(task.hidden_size, eps=task.rms_norm_eps)
        self.self_attn = Attention(task)
        self.post_attention_layernorm = nn.RMSNorm(task.hidden_size, eps=task.rms_norm_eps)
        self.mlp = Mlp(task)

    def forward(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``cos`` and ``sin`` are (S, head_dim), float32."""
        states = states + self.self_attn(self.input_layernorm(states), cos, sin)
        out: torch.Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return out


class Attention(nn.Module):
    """Causal attention in which several query heads share a key and value head."""

    def __init__(self, task: TextTask) -> None:
        super().__init__()
        self.head_dim = task.head_dim
        self.q_proj = nn.Linear(task.hidden_size, task.heads * task.head_dim, bias=False)
        self.k_proj = nn.Linear(task.hidden_size, task.kv_heads * task.head_dim, bias=False)
        self.v_proj = nn.Linear(task.hidden_size, task.kv_heads * task.head_dim, bias=False)
        self.o_proj = nn.Linear(task.heads * task.head_dim, task.hidden_size, bias=False)

    def forward(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        n, s, _ = states.shape
        query, key, value = (
            projected.view(n, s, -1, self.head_dim).transpose(1, 2)
            for projected in (self.q_proj(states), self.k_proj(states), self.v_proj(states))
        )
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).reshape(n, s, -1))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, task: TextTask) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(task.hidden_size, task.intermediate_size, bias=False)
        self.up_proj = nn.Linear(task.hidden_size, task.intermediate_size, bias=False)
        self.down_proj = nn.Linear(task.intermediate_size, task.hidden_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))
        return out


def chunk_loss(states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss of each sample (N,) over a part of its places; the softmax in float32."""
    logits = F.linear(states, head).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(targets), -1).sum(1)


def rotary(task: TextTask, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the places 0 to ``length``, (S, head_dim), float32.

    Source: transformers, ``modeling_rope_utils.py``, rope types ``default`` and ``llama3``.
    """
    frequencies = task.rope_theta ** -(torch.arange(0, task.head_dim, 2, device=device).float() / task.head_dim)
    if task.rope_scaling:
        of = task.rope_scaling
        original, low, high = of["original_max_position_embeddings"], of["low_freq_factor"], of["high_freq_factor"]
        turns = original * frequencies / (2 * math.pi)  # of each frequency over the context it was first trained for
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (smooth + (1 - smooth) / of["factor"])
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each head's vectors (N, H, S, D), turned by their places; in float32."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(heads.dtype)


def prepared(network: Llama, *, recompute: bool, compiled: bool) -> Llama:
    """Each layer compiled, and computed again in the backward pass, where that is wanted; before it is sharded."""
    for layer in network.layers:
        if compiled:
            layer.forward = torch.compile(layer.forward)
        if recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    if compiled:
        network.chunk_loss = torch.compile(chunk_loss)
    return network
