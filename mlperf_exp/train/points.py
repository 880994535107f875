"""Where a global batch size lies among published reference points."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class HasBatch(Protocol):
    """A reference point."""

    @property
    def global_batch(self) -> int:
        """Samples a step."""


P = TypeVar("P", bound=HasBatch)


@dataclass(frozen=True, slots=True)
class Place(Generic[P]):
    """The points around a batch size, the same one twice where it is on one or beyond all.

    ``share`` is how far it lies from ``low`` to ``high`` on a logarithmic scale, ``scale`` what the learning rate is to
    be multiplied with (the square root of the ratio beyond all points, else 1), ``why`` says both.
    """

    low: P
    high: P
    share: float
    scale: float
    why: str

    def between(self, low: float, high: float) -> float:
        """Interpolated between a value of ``low`` and one of ``high``."""
        return low + (high - low) * self.share


def locate(points: Sequence[P], global_batch: int) -> Place[P]:
    """The place of ``global_batch`` among ``points``, which are sorted by theirs."""
    sizes = [point.global_batch for point in points]
    i = bisect_left(sizes, global_batch)
    if i < len(points) and sizes[i] == global_batch:
        return Place(points[i], points[i], 0.0, 1.0, f"the reference point of batch size {global_batch:,}")
    if i in (0, len(points)):
        edge = points[0] if i == 0 else points[-1]
        why = f"scaled from the nearest reference point, batch size {edge.global_batch:,}"
        return Place(edge, edge, 0.0, math.sqrt(global_batch / edge.global_batch), why)
    low, high = points[i - 1], points[i]
    share = math.log(global_batch / low.global_batch) / math.log(high.global_batch / low.global_batch)
    why = f"between the reference points of batch sizes {low.global_batch:,} and {high.global_batch:,}"
    return Place(low, high, share, 1.0, why)
