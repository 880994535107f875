"""Image classifiers: the weights' file, images cut to size, and top-1 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.config import ImageClassifier, Weights
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan

_SYNTHETIC = 1024


@dataclass(frozen=True, slots=True)
class ImageSet:
    """``pixels`` is ``uint8 [images, side, side, 3]``, in memory or mapped from a file; ``labels`` class numbers."""

    pixels: Any
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        return self.pixels[place], int(self.labels[place])


def synthetic(model: ImageClassifier, samples: int, seed: int) -> ImageSet:
    """Random pixels."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (samples, model.image_size, model.image_size, 3), dtype=np.uint8)
    return ImageSet(pixels, random.integers(0, model.classes, samples, dtype=np.int32))


def load(plan: Plan) -> Inputs:
    """Find the weights, read the images; see :func:`mlperf_exp.inputs.load`."""
    config = plan.config
    assert config.model.weights is Weights.dummy
    samples = synthetic(config.model, config.dataset.samples or _SYNTHETIC, config.seed)
    return Inputs(None, samples, None)
