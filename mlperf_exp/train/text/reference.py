"""Llama 3.1 8B's published reference points by global batch size, and what lies between them.

Source: MLCommons' reference convergence points (mlcommons/logging, ``rcp_checker``, training 6.1.0), each the mean of
twenty runs; the training policies for what all share.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

EVAL_EVERY, EVAL_SAMPLES = 12_288, 1024
MAX_STEPS = 1_200_000  # at the end of the cosine, which no run comes near
END_SHARE = 0.1  # of the base learning rate, at the end
WEIGHT_DECAY, CLIP_NORM = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """Hyperparameters that are known to converge, and after how many samples on average."""

    global_batch: int
    base_lr: float
    warmup_samples: float
    samples: float

    @property
    def warmup_steps(self) -> int:
        """The warm-up in whole steps."""
        return max(1, round(self.warmup_samples / self.global_batch))


POINTS = (
    Point(16, 4e-4, 256, 161_587),
    Point(32, 8e-4, 4096, 179_405),
    Point(64, 8e-4, 6144, 226_714),
    Point(96, 1e-3, 16_348, 278_640),
    Point(128, 2e-3, 32_768, 345_907),
)


def reference(global_batch: int) -> tuple[Point, str]:
    """AdamW's hyperparameters for a global batch size, and how they were found.

    On a reference point: that point. Between two: interpolated over the logarithm of the batch size. Outside: the
    nearest point's, with the rate scaled by the square root of the ratio.
    """
    sizes = [point.global_batch for point in POINTS]
    i = bisect_left(sizes, global_batch)
    if i < len(POINTS) and sizes[i] == global_batch:
        return POINTS[i], f"the reference point of batch size {global_batch:,}"
    if i in (0, len(POINTS)):
        edge = POINTS[0] if i == 0 else POINTS[-1]
        rate = edge.base_lr * math.sqrt(global_batch / edge.global_batch)
        why = f"scaled from the nearest reference point, batch size {edge.global_batch:,}"
        return Point(global_batch, rate, edge.warmup_samples, edge.samples), why
    low, high = POINTS[i - 1], POINTS[i]
    share = math.log(global_batch / low.global_batch) / math.log(high.global_batch / low.global_batch)

    def between(a: float, b: float) -> float:
        return a + (b - a) * share

    point = Point(
        global_batch,
        between(low.base_lr, high.base_lr),
        between(low.warmup_samples, high.warmup_samples),
        between(low.samples, high.samples),
    )
    return point, f"between the reference points of batch sizes {low.global_batch:,} and {high.global_batch:,}"


def small_rate(parameters: int) -> float:
    """A learning rate for a model of no reference point.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, equation D.1.
    """
    return max(1e-5, round(0.003239 - 0.0001395 * math.log(parameters), 6))
