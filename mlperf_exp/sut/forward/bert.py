"""BERT for extractive questions, computed on packed tokens: sequences lie end to end, and nothing is padded.

Every operation but attention works token by token, so that a batch is just its tokens, ``[tokens, hidden]``; attention
is given where each sequence begins. A data set of mean length 178 of 384 is answered in less than half the time of a
padded one. The weights are transformers' ``BertForQuestionAnswering``, and so are the answers (``tests/sut/``).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from mlperf_exp.config import ExtractiveQa
from mlperf_exp.errors import UserError

_EPSILON = 1e-12  # of BERT's layer norms
_HEAD = "qa_outputs"


@dataclass(slots=True)
class Layer:
    """One layer's weights; matrices as PyTorch's linear layers hold them, ``[out, in]``."""

    qkv: Any
    qkv_bias: Any
    out: Any
    out_bias: Any
    norm1: Any
    norm1_bias: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any
    norm2: Any
    norm2_bias: Any


class PackedBert:
    """The network. ``state`` is a state dict of ``BertForQuestionAnswering``; None gives random weights.

    Raises:
        UserError: the weights are of another architecture.
    """

    def __init__(
        self, shape: ExtractiveQa, state: dict[str, Any] | None, dtype: Any, device: Any, fused: bool = False
    ) -> None:
        self.heads, self.max_tokens = shape.heads, shape.max_tokens
        take = _Weights(shape, state, dtype, device)
        hidden, wide = shape.hidden_size, shape.intermediate_size
        self.words = take("bert.embeddings.word_embeddings.weight", shape.vocab_size, hidden)
        self.places = take("bert.embeddings.position_embeddings.weight", shape.max_positions, hidden)
        self.types = take("bert.embeddings.token_type_embeddings.weight", 2, hidden)
        self.norm = take.norm("bert.embeddings.LayerNorm", hidden)
        self.layers = []
        for n in range(shape.layers):
            at = f"bert.encoder.layer.{n}."
            parts = [take.linear(f"{at}attention.self.{name}", hidden, hidden) for name in ("query", "key", "value")]
            self.layers.append(
                Layer(
                    torch.cat([weight for weight, _ in parts]),
                    torch.cat([bias for _, bias in parts]),
                    *take.linear(f"{at}attention.output.dense", hidden, hidden),
                    *take.norm(f"{at}attention.output.LayerNorm", hidden),
                    *take.linear(f"{at}intermediate.dense", wide, hidden),
                    *take.linear(f"{at}output.dense", hidden, wide),
                    *take.norm(f"{at}output.LayerNorm", hidden),
                )
            )
        self.head = take.linear(_HEAD, 2, hidden)
        self._up: Any = _up
        self._add_norm: Any = _add_norm
        if fused:
            from mlperf_exp.sut.forward.kernels import add_norm

            self._up, self._add_norm = _up_fused, add_norm

    def __call__(self, ids: Any, types: Any, places: Any, begins: Any) -> Any:
        """Logits of an answer's start and end, float32 ``[tokens, 2]``.

        Args:
            ids: int32 ``[tokens]``, the sequences end to end; so are the others.
            types: 0 in the question, 1 in the text.
            places: each token's place in its sequence.
            begins: int32 ``[sequences + 1]``: where each sequence begins, and where the last ends. Empty sequences may
                follow, and tokens after the last one, whose logits mean nothing.
        """
        x = self.words[ids] + self.places[places] + self.types[types]
        x = functional.layer_norm(x, x.shape[-1:], *self.norm, _EPSILON)
        hidden = x.shape[-1]
        for layer in self.layers:
            qkv = functional.linear(x, layer.qkv, layer.qkv_bias).view(-1, 3, self.heads, hidden // self.heads)
            q, k, v = qkv.unbind(1)
            mixed = self._attend(q, k, v, begins).reshape(-1, hidden)
            mixed = functional.linear(mixed, layer.out, layer.out_bias)
            x = self._add_norm(x, mixed, layer.norm1, layer.norm1_bias, _EPSILON)
            narrow = functional.linear(self._up(x, layer.up, layer.up_bias), layer.down, layer.down_bias)
            x = self._add_norm(x, narrow, layer.norm2, layer.norm2_bias, _EPSILON)
        return functional.linear(x, *self.head).float()

    def _attend(self, q: Any, k: Any, v: Any, begins: Any) -> Any:
        """Attention within each sequence; ``[tokens, heads, size]`` in and out."""
        if q.is_cuda:
            longest = self.max_tokens
            return torch.ops.aten._flash_attention_forward(
                q, k, v, begins, begins, longest, longest, 0.0, False, False
            )[0]
        mixed = torch.empty_like(q, memory_format=torch.contiguous_format)
        for begin, end in itertools.pairwise(begins.tolist()):
            if end > begin:
                one = [part[begin:end].transpose(0, 1).unsqueeze(0) for part in (q, k, v)]
                mixed[begin:end] = functional.scaled_dot_product_attention(*one)[0].transpose(0, 1)
        return mixed


def _add_norm(x: Any, y: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    return functional.layer_norm(x + y, x.shape[-1:], weight, bias, epsilon)


def _up(x: Any, weight: Any, bias: Any) -> Any:
    return functional.gelu(functional.linear(x, weight, bias))


def _up_fused(x: Any, weight: Any, bias: Any) -> Any:
    """GELU inside the matrix product's kernel (cuBLASLt), by its usual tanh formula: within 0.0005 of the exact one."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


class _Weights:
    """Takes tensors out of a state dict and checks their shapes; random ones where there is none."""

    def __init__(self, shape: ExtractiveQa, state: dict[str, Any] | None, dtype: Any, device: Any) -> None:
        self._shape, self._state, self._dtype, self._device = shape, state, dtype, device
        self._random = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *size: int) -> Any:
        if self._state is None:
            value = torch.empty(size).normal_(0.0, 0.02, generator=self._random)
        elif name not in self._state:
            have = "none of its names" if not any(key.startswith("bert.") for key in self._state) else "not this one"
            raise UserError(
                "model.path",
                f"the weights lack {name} (they have {have}): they are of another architecture than {self._shape.name}",
                "Give those of a BertForQuestionAnswering, or another model=",
            )
        else:
            value = self._state[name]
        if tuple(value.shape) != size:
            raise UserError(
                "model.path",
                f"{name} is {list(value.shape)} in the weights, and {self._shape.name} has {list(size)}",
                "Give the weights that belong to the model, or another model=",
            )
        return value.to(device=self._device, dtype=self._dtype)

    def linear(self, name: str, out: int, inner: int) -> tuple[Any, Any]:
        return self(f"{name}.weight", out, inner), self(f"{name}.bias", out)

    def norm(self, name: str, size: int) -> tuple[Any, Any]:
        if self._state is None:
            one = torch.ones(size, device=self._device, dtype=self._dtype)
            return one, torch.zeros_like(one)
        return self(f"{name}.weight", size), self(f"{name}.bias", size)
