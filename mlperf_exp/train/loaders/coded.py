"""Images as they lie in their files, for what decodes whole batches: a worker reads bytes and draws the view."""

from __future__ import annotations

import io
from typing import NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from mlperf_exp.train.images import Images, View, read, reading

JPEG, _END = b"\xff\xd8", b"\xff\xd9"


class CodedImage(NamedTuple):
    """A file's bytes and what is to be made of them."""

    content: torch.Tensor  # uint8
    view: View
    label: int
    path: str


class CodedBatch(NamedTuple):
    """Several; the files lie one after the other in one tensor, as each tensor of a worker costs a file descriptor."""

    content: torch.Tensor  # uint8
    lengths: list[int]  # bytes
    views: list[View]
    labels: torch.Tensor  # int64
    paths: list[str]

    def files(self) -> list[torch.Tensor]:
        """Each file's bytes."""
        return list(torch.split(self.content, self.lengths))


class CodedImages(Dataset[CodedImage]):
    """The files of ``images``: ``(epoch, index)`` -> a JPEG with one or three components.

    Another format, CMYK, and a JPEG that does not end as one are decoded here by Pillow, and handed on as a portable
    pixmap, which is nothing but the pixels behind a short header.
    """

    def __init__(self, images: Images) -> None:
        self._images = images

    def __getitem__(self, place: tuple[int, int]) -> CodedImage:
        path = self._images.path(place)
        with reading(path):
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                kind, mode, (width, height) = image.format, image.mode, image.size
        if kind != "JPEG" or mode not in ("L", "RGB") or not content.endswith(_END):
            pixels = io.BytesIO()
            read(path).save(pixels, "PPM")
            content = pixels.getvalue()
        view, label = self._images.view(place, width, height), self._images.label(place)
        return CodedImage(torch.frombuffer(bytearray(content), dtype=torch.uint8), view, label, str(path))


def together(images: list[CodedImage]) -> CodedBatch:
    """A batch of them."""
    return CodedBatch(
        torch.cat([image.content for image in images]),
        [len(image.content) for image in images],
        [image.view for image in images],
        torch.tensor([image.label for image in images]),
        [image.path for image in images],
    )
