"""ResNet-50's published reference points by global batch size, and what lies between them.

Source: MLCommons' reference convergence points for ResNet-50 with LARS (mlcommons/logging, ``rcp_checker``, training
4.0.0): each is the mean of ten or more runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlperf_exp.train.points import locate

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
    place = locate(LARS, global_batch)
    low, high = place.low, place.high
    near = low if place.share < 0.5 else high
    epochs = place.between(low.decay_epochs, high.decay_epochs)
    point = Point(
        global_batch,
        place.scale * place.between(low.base_lr, high.base_lr),
        round(place.between(low.warmup_epochs, high.warmup_epochs)),
        near.weight_decay,
        near.momentum,
        max(1, round(epochs * IMAGENET_TRAIN / global_batch)),
        place.between(low.epochs, high.epochs),
    )
    return point, place.why
