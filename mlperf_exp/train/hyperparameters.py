"""ResNet-50's published reference points by global batch size, and what lies between them.

Source: MLCommons' reference convergence points for ResNet-50 with LARS (mlcommons/logging, ``rcp_checker``, training
4.0.0): each is the mean of ten or more runs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

IMAGENET_TRAIN, IMAGENET_VAL = 1_281_167, 50_000


@dataclass(frozen=True, slots=True)
class Point:
    """Hyperparameters that are known to converge, and after how many epochs on average."""

    global_batch: int
    base_lr: float
    warmup_epochs: float
    weight_decay: float
    momentum: float
    decay_steps: int
    epochs: float

    @property
    def decay_epochs(self) -> float:
        """The length of the decay in epochs of ImageNet."""
        return self.decay_steps * self.global_batch / IMAGENET_TRAIN


LARS = (
    Point(1632, 7.4, 2, 5e-5, 0.9, 27476, 35.0),
    Point(3264, 10.5, 2, 5e-5, 0.9, 14523, 35.2),
    Point(4096, 10.0, 5, 2e-4, 0.9, 13137, 39.9),
    Point(8192, 17.0, 5, 2e-4, 0.9, 6095, 41.9),
    Point(13056, 12.8, 9, 2.5e-5, 0.9, 4710, 45.4),
    Point(32768, 21.2, 16, 2.5e-5, 0.94, 2267, 56.0),
    Point(49152, 19.405, 24, 1e-4, 0.951807, 1846, 68.0),
    Point(58880, 23.246, 29, 1e-4, 0.951807, 1785, 79.9),
    Point(65536, 24.699, 31, 1e-4, 0.951807, 1133, 84.5),
)


def reference(global_batch: int) -> tuple[Point, str]:
    """LARS hyperparameters for a global batch size, and how they were found.

    On a reference point: that point. Between two: rate, warm-up and epochs are interpolated over the logarithm of the
    batch size; weight decay and momentum, of which MLPerf allows only certain values, are the nearer point's. Outside:
    the nearest point's, with the rate scaled by the square root of the ratio.
    """
    sizes = [point.global_batch for point in LARS]
    i = bisect_left(sizes, global_batch)
    if i < len(LARS) and sizes[i] == global_batch:
        return LARS[i], f"the reference point of batch size {global_batch:,}"
    if i in (0, len(LARS)):
        edge = LARS[0] if i == 0 else LARS[-1]
        scale = math.sqrt(global_batch / edge.global_batch)
        steps = max(1, round(edge.decay_epochs * IMAGENET_TRAIN / global_batch))
        why = f"scaled from the nearest reference point, batch size {edge.global_batch:,}"
        point = Point(
            global_batch, edge.base_lr * scale, edge.warmup_epochs, edge.weight_decay, edge.momentum, steps, edge.epochs
        )
        return point, why
    low, high = LARS[i - 1], LARS[i]
    share = math.log(global_batch / low.global_batch) / math.log(high.global_batch / low.global_batch)
    near = low if share < 0.5 else high

    def between(a: float, b: float) -> float:
        return a + (b - a) * share

    epochs = between(low.decay_epochs, high.decay_epochs)
    point = Point(
        global_batch,
        between(low.base_lr, high.base_lr),
        round(between(low.warmup_epochs, high.warmup_epochs)),
        near.weight_decay,
        near.momentum,
        max(1, round(epochs * IMAGENET_TRAIN / global_batch)),
        between(low.epochs, high.epochs),
    )
    return point, f"between the reference points of batch sizes {low.global_batch:,} and {high.global_batch:,}"
