"""Samples out of texts: laid end to end in an order drawn from the seed, and cut to one length; numpy only.

Sample ``i`` holds tokens ``i * length`` to ``(i + 1) * length``, both included, of the whole: the last is also the next
sample's first, so that each token but the very first is predicted once. As Megatron-LM's ``GPTDataset`` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.data import indexed


class Packed:
    """``len(packed)`` samples of ``length + 1`` token ids. Texts keep their order where ``seed`` is None."""

    def __init__(self, paths: Sequence[Path], length: int, seed: int | None = None) -> None:
        self._files = [indexed.read(path) for path in paths]
        self._length = length
        self._first = np.cumsum([0, *(len(file.lengths) for file in self._files)])  # text of each file, and the end
        lengths = np.concatenate([np.asarray(file.lengths) for file in self._files])
        self._order = np.arange(len(lengths), dtype=np.uint32 if len(lengths) < 2**32 else np.uint64)
        if seed is not None:
            np.random.default_rng(seed).shuffle(self._order)
        self._ends = np.cumsum(lengths[self._order], dtype=np.int64)

    def __len__(self) -> int:
        return max(0, (int(self._ends[-1]) - 1) // self._length)

    def __getitem__(self, sample: int) -> NDArray[np.int64]:
        wanted, at = self._length + 1, sample * self._length
        place = int(np.searchsorted(self._ends, at, side="right"))
        pieces: list[NDArray[np.int64]] = []
        while wanted:
            text = int(self._order[place])
            begin = int(self._ends[place - 1]) if place else 0
            file = int(np.searchsorted(self._first, text, side="right")) - 1
            piece = self._files[file].piece(text - int(self._first[file]), at - begin, wanted)
            pieces.append(piece)
            wanted, at, place = wanted - len(piece), at + len(piece), place + 1
        return np.concatenate(pieces)


def count(paths: Sequence[Path], length: int) -> int:
    """How many samples the files make, without an order.

    Raises:
        UserError: a file is missing or broken.
    """
    tokens = sum(len(indexed.read(path).tokens) for path in paths)
    return max(0, (tokens - 1) // length)
