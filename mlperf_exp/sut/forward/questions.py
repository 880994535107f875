"""Extractive questions as a program: packed tokens in, logits of the answer's start and end out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.data.tokens import Tokens
from mlperf_exp.sut.forward.program import Buffer

_SHORTEST = 16  # tokens of a sequence: with it a batch's most sequences are bounded


class QuestionProgram:
    """``build`` makes the network on a device: ``(ids, types, places, begins) -> float32 [tokens, 2]``."""

    def __init__(self, tokens: Tokens, build: Callable[[Any], Callable[..., Any]]) -> None:
        self._tokens, self._build = tokens, build
        self._lengths = np.diff(tokens.begins)
        self._loaded: dict[int, NDArray[np.int32]] = {}
        self._network: Any = None

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """A token is one unit; a very short sequence counts as 16."""
        found: NDArray[np.int64] = np.maximum(self._lengths[samples], _SHORTEST)
        return found

    def load(self, samples: Sequence[int]) -> None:
        """Read the tokens of these samples into memory."""
        begins, values = self._tokens.begins, self._tokens.values
        self._loaded = {}
        for sample in samples:
            here = values[begins[sample] : begins[sample + 1]]
            places = np.arange(len(here), dtype=np.int32)
            self._loaded[sample] = np.column_stack([here, places]).astype(np.int32)

    def most(self, size: int) -> int:
        """Bounded by the shortest sequence that is counted."""
        return max(1, size // _SHORTEST)

    def inputs(self, size: int) -> tuple[Buffer, ...]:
        """For each token its id, its type and its place; and where the sequences begin."""
        return Buffer((size, 3), "int32"), Buffer((self.most(size) + 1,), "int32")

    def output(self, size: int) -> Buffer:
        """Two logits a token."""
        return Buffer((size, 2), "float32")

    def fill(self, samples: NDArray[np.int64], buffers: Sequence[Any]) -> None:
        """Lay the sequences end to end; what is left over stays zero."""
        tokens, begins = buffers[0].numpy(), buffers[1].numpy()
        lengths = self._lengths[samples]
        end = int(lengths.sum())
        if end > len(tokens):  # a warm-up of a size in which no sample fits
            tokens[:] = self._loaded[int(samples[0])][: len(tokens)]
            begins[0], begins[1:] = 0, len(tokens)
            return
        np.concatenate([self._loaded[sample] for sample in samples.tolist()], out=tokens[:end])
        tokens[end:] = 0
        begins[0] = 0
        np.cumsum(lengths, out=begins[1 : len(samples) + 1])
        begins[len(samples) + 1 :] = end

    def targets(self, device: Sequence[Any]) -> Sequence[Any]:
        """The arrays themselves."""
        return device

    def send(self, samples: NDArray[np.int64], buffers: Sequence[Any], targets: Sequence[Any]) -> None:
        """Lay the sequences end to end, then copy them at once."""
        self.fill(samples, buffers)
        for there, here in zip(targets, buffers, strict=True):
            there.copy_(here, non_blocking=True)

    def prepare(self, device: Any) -> None:
        """Make the network."""
        self._network = self._build(device)

    def forward(self, *inputs: Any) -> Any:
        """Logits of every token."""
        tokens, begins = inputs
        return self._network(tokens[:, 0], tokens[:, 1], tokens[:, 2], begins)

    def answers(self, samples: NDArray[np.int64], output: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """For each sample float32 ``[tokens, 2]``, as MLPerf's reference answers."""
        begins = np.zeros(len(samples) + 1, dtype=np.int64)
        np.cumsum(self._lengths[samples] * 8, out=begins[1:])
        return output, begins
