"""Images of :mod:`mlperf_exp.train.folders`, read and augmented.

Its imports stand at the top: readers are forked from the rank, and need not each make them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import functional as tf

from mlperf_exp.train.feed import UnreadableSample
from mlperf_exp.train.folders import Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training set, RGB, 0 to 1


class UnreadableImage(UnreadableSample):
    """A file that is no whole image; names it."""


class View(NamedTuple):
    """What is taken of an image, in pixels: a part is resized, and a square of that is cut and perhaps mirrored."""

    top: int  # the part
    left: int
    height: int
    width: int
    rows: int  # to which it is resized
    columns: int
    row: int  # the square's corner
    column: int
    flip: bool


def seen(image: Any, view: View, size: int) -> Any:
    """The square of ``size`` pixels that ``view`` takes of a PIL image, or of a uint8 tensor of shape (3, H, W)."""
    part = tf.crop(image, view.top, view.left, view.height, view.width)
    square = tf.crop(tf.resize(part, [view.rows, view.columns], antialias=True), view.row, view.column, size, size)
    return tf.hflip(square) if view.flip else square


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images as they are trained on: ``(epoch, index)`` -> uint8 tensor of shape (3, size, size), and its class."""

    def __init__(self, split: Split, size: int) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, int]:
        image = read(self.path(place))
        return tf.pil_to_tensor(seen(image, self.view(place, *image.size), self.size)), self.label(place)

    def path(self, place: tuple[int, int]) -> Path:
        """The file."""
        return self.split.root / self.split.paths[place[1]]

    def label(self, place: tuple[int, int]) -> int:
        """The class."""
        return self.split.labels[place[1]]

    def view(self, place: tuple[int, int], width: int, height: int) -> View:
        """What is taken of the image, which has ``width`` x ``height`` pixels."""
        raise NotImplementedError


class TrainingImages(Images):
    """Augmented training images.

    MLPerf's augmentation: a random part of 8 (``min_area``) to 100 % of the area and of aspect ratio 3/4 to 4/3,
    resized, and a flip in half of the cases. What is drawn depends on (seed, epoch, index) alone: not on the worker,
    nor on what was read before, so that an interrupted run goes on with the very same images.
    """

    def __init__(self, split: Split, size: int, seed: int, min_area: float = 0.08, flip: bool = True) -> None:
        super().__init__(split, size)
        self._seed, self._min_area, self._flip = seed, min_area, flip

    def view(self, place: tuple[int, int], width: int, height: int) -> View:
        """See :class:`Images`."""
        generator = torch.Generator().manual_seed(_mix(self._seed, *place))  # its own: threads share the global one
        part = _part(width, height, self._min_area, generator)
        flip = self._flip and bool(torch.rand((), generator=generator) < 0.5)
        return View(*part, self.size, self.size, 0, 0, flip)


class ValidationImages(Images):
    """Validation images: the shorter side resized to 256/224 of ``size``, the centre cropped; of epoch 0 only."""

    def view(self, place: tuple[int, int], width: int, height: int) -> View:
        """See :class:`Images`; rounded as torchvision's ``resize`` and ``center_crop`` do."""
        short = round(self.size * 256 / 224)
        rows, columns = (short * side // min(width, height) for side in (height, width))
        row, column = (round((side - self.size) / 2) for side in (rows, columns))
        return View(0, 0, height, width, rows, columns, row, column, flip=False)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever Pillow raises inside, as one error that names ``path``.

    Raises:
        UnreadableImage: it is no image, or not a whole one.
    """
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} cannot be read as an image: {error}") from None


def read(path: Path) -> Any:
    """An image file as a PIL image in RGB.

    Raises:
        UnreadableImage: see :func:`reading`.
    """
    with reading(path), Image.open(path) as image:
        return image.convert("RGB")


def _part(width: int, height: int, min_area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of an image as MLPerf's augmentation draws it.

    Draws what torchvision's ``RandomResizedCrop`` draws from a global generator in the same state.
    """
    low, high = torch.log(torch.tensor([3 / 4, 4 / 3])).tolist()
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(min_area, 1.0, generator=generator).item()
        aspect = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(torch.randint(height - rows + 1, (1,), generator=generator))
            return top, int(torch.randint(width - columns + 1, (1,), generator=generator)), rows, columns
    rows, columns = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))  # of a long image
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _mix(seed: int, epoch: int, index: int) -> int:
    """One number of 63 bits out of three, such that neighbours have nothing in common (splitmix64's finalizer)."""
    value = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB + 1) % (1 << 64)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % (1 << 64)
    return (value ^ (value >> 31)) >> 1
