"""Images of :mod:`mlperf_exp.train.folders`, read and augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from mlperf_exp.train.feed import UnreadableSample
from mlperf_exp.train.folders import Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training set, RGB, 0 to 1


class UnreadableImage(UnreadableSample):
    """A file that is no whole image; names it."""


class TrainingImages(Dataset[tuple[torch.Tensor, int]]):
    """Augmented training images: ``(epoch, index)`` -> uint8 tensor of shape (3, size, size), and its class.

    MLPerf's augmentation: a random part of 8 (``min_area``) to 100 % of the area and of aspect ratio 3/4 to 4/3,
    resized, and a flip in half of the cases. What is drawn depends on (seed, epoch, index) alone: not on the worker,
    nor on what was read before, so that an interrupted run goes on with the very same images.
    """

    def __init__(self, split: Split, size: int, seed: int, min_area: float = 0.08, flip: bool = True) -> None:
        self._split, self._size, self._seed, self._min_area, self._flip = split, size, seed, min_area, flip

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, int]:
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms import functional as tf

        epoch, index = place
        image = read(self._split.root / self._split.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self._seed, epoch, index))
            top, left, height, width = RandomResizedCrop.get_params(image, [self._min_area, 1.0], [3 / 4, 4 / 3])
            flip = self._flip and bool(torch.rand(()) < 0.5)
        image = tf.resized_crop(image, top, left, height, width, [self._size, self._size], antialias=True)
        if flip:
            image = tf.hflip(image)
        return tf.pil_to_tensor(image), self._split.labels[index]


class ValidationImages(Dataset[tuple[torch.Tensor, int]]):
    """Validation images: the shorter side resized to 256/224 of ``size``, the centre cropped."""

    def __init__(self, split: Split, size: int) -> None:
        self._split, self._size = split, size

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from torchvision.transforms import functional as tf

        image = tf.resize(read(self._split.root / self._split.paths[index]), [round(self._size * 256 / 224)])
        return tf.pil_to_tensor(tf.center_crop(image, [self._size, self._size])), self._split.labels[index]


def read(path: Path) -> Any:
    """An image file as a PIL image in RGB.

    Raises:
        UnreadableImage: it is no image, or not a whole one.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} cannot be read as an image: {error}") from None


def _mix(seed: int, epoch: int, index: int) -> int:
    """One number of 63 bits out of three, such that neighbours have nothing in common (splitmix64's finalizer)."""
    value = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB + 1) % (1 << 64)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % (1 << 64)
    return (value ^ (value >> 31)) >> 1
