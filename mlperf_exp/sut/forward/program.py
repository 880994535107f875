"""What the ``torch`` backend runs: a network with its samples, in batches of a few fixed sizes.

A size counts *units*: images for a classifier, tokens for packed text. A batch may be smaller than its size; what
is left over is computed and thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(NamedTuple):
    """An array that a batch reads or writes: its shape, and torch's name of its type."""

    shape: tuple[int, ...]
    dtype: str


class Program(Protocol):
    """One network and the samples that it is asked for."""

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each sample's units."""

    def load(self, samples: Sequence[int]) -> None:
        """Bring samples into memory that the device can read fast; they replace those loaded before."""

    def most(self, size: int) -> int:
        """How many samples a batch of this size can have."""

    def inputs(self, size: int) -> tuple[Buffer, ...]:
        """The arrays that a batch of this size reads; those of a smaller size are beginnings of a larger one's."""

    def output(self, size: int) -> Buffer:
        """The array that it writes; the same holds."""

    def fill(self, samples: NDArray[np.int64], buffers: Sequence[Any]) -> None:
        """Write a batch of loaded samples into ``inputs``, which lie in the processor's memory."""

    def targets(self, device: Sequence[Any]) -> Sequence[Any]:
        """What ``send`` writes to, of the arrays on a GPU: asked for once for all batches."""

    def send(self, samples: NDArray[np.int64], buffers: Sequence[Any], targets: Sequence[Any]) -> None:
        """Copy a batch to ``targets``, on the current stream; ``buffers`` are pinned, for use on the way."""

    def prepare(self, device: Any) -> None:
        """Put the network on the device."""

    def forward(self, *inputs: Any) -> Any:
        """Compute ``output`` from ``inputs``, both on the device. The same operations whatever the values are."""

    def answers(self, samples: NDArray[np.int64], output: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The batch's answers, and where each begins in bytes; see :class:`mlperf_exp.messages.Answers`."""
