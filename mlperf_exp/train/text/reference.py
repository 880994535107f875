"""Llama 3.1 8B's published reference points by global batch size, and what lies between them.

Source: MLCommons' reference convergence points (mlcommons/logging, ``rcp_checker``, training 6.1.0), each the mean of
twenty runs; the training policies for what all share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlperf_exp.train.points import locate

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
    place = locate(POINTS, global_batch)
    low, high = place.low, place.high
    point = Point(
        global_batch,
        place.scale * place.between(low.base_lr, high.base_lr),
        place.between(low.warmup_samples, high.warmup_samples),
        place.between(low.samples, high.samples),
    )
    return point, place.why


def small_rate(parameters: int) -> float:
    """A learning rate for a model of no reference point.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, equation D.1.
    """
    return max(1e-5, round(0.003239 - 0.0001395 * math.log(parameters), 6))
