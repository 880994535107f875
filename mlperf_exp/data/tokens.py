"""Token sequences of many samples as two arrays, which is how they are cached and loaded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Tokens(NamedTuple):
    """Sample ``i`` has rows ``begins[i]`` to ``begins[i + 1]`` of ``values``: int32 ``[tokens, 2]``, id and type.

    Type 0 is the question, 1 the text.
    """

    values: NDArray[np.int32]
    begins: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.begins) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self.begins)


def synthetic(samples: int, mean: float, sigma: float, longest: int, vocab_size: int, seed: int) -> Tokens:
    """Random ids with log-normal lengths, cut at ``longest`` (SQuAD v1.1 pieces: mean 178 with 384 at most)."""
    random = np.random.default_rng(seed)
    drawn = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, samples)
    lengths = np.clip(np.rint(drawn), min(32, longest), longest).astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty((int(begins[-1]), 2), dtype=np.int32)
    values[:, 0] = random.integers(0, vocab_size, len(values))
    places = np.arange(len(values)) - np.repeat(begins[:-1], lengths)
    values[:, 1] = places >= 14  # a question is about so long
    return Tokens(values, begins)
