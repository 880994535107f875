"""JPEGs decoded on the GPU by nvJPEG, as torchvision wraps it, and resized there; what it refuses, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import functional as tf

from mlperf_exp.errors import RunFailed
from mlperf_exp.train.feed import Batch, Source
from mlperf_exp.train.images import Images, reading, seen
from mlperf_exp.train.job import Job
from mlperf_exp.train.loaders import ahead
from mlperf_exp.train.loaders.coded import JPEG, CodedBatch

Jpegs = Callable[[list[torch.Tensor]], list[torch.Tensor]]  # files' bytes -> uint8 tensors of shape (3, H, W)


def data(job: Job, rank: int, training: Images, validation: Images) -> tuple[Source, Any]:
    """See :class:`.Loading`."""
    return ahead.data(job, rank, training, validation, lambda: Decoder(on_gpu, training.size, job.device))


def on_gpu(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """The JPEGs ``files`` decoded on the current GPU, for its current stream.

    Raises:
        RuntimeError: one of them is refused, and so all are.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        device = torch.device("cuda", torch.cuda.current_device())
        decoded: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:
        torch.cuda.synchronize()  # a part of them may be decoded still, into memory that is free now
        raise
    return decoded


class Decoder:
    """Batches of files -> batches of images of ``size`` pixels on ``device``; ``jpegs`` decodes what is JPEG.

    Files that it refused are remembered: they would cost their whole batch a second try each time.
    """

    def __init__(self, jpegs: Jpegs, size: int, device: str) -> None:
        self._jpegs, self._size, self._device = jpegs, size, device
        self._refused: set[str] = set()

    def __call__(self, batches: Iterator[CodedBatch]) -> Iterator[Batch]:
        """See :data:`.ahead.Decode`.

        Raises:
            RunFailed: ``jpegs`` cannot decode a plain image, so that all would be left to Pillow.
            UnreadableImage: Pillow cannot read an image that was refused.
        """
        try:
            self._jpegs([_plain_jpeg()])
        except RuntimeError as error:
            problem = f"backend.loader=nvjpeg: torchvision cannot decode JPEG on this GPU: {error}"
            remedy = "Install torchvision's CUDA build, or give backend.loader=torchvision"
            raise RunFailed(f"{problem}. {remedy}") from error
        for batch in batches:
            images = self._decoded(batch)
            squares = [seen(image, view, self._size) for image, view in zip(images, batch.views, strict=True)]
            yield torch.stack(squares), batch.labels.to(self._device)

    def _decoded(self, batch: CodedBatch) -> list[torch.Tensor]:
        files = batch.files()
        ours = [
            i
            for i, file in enumerate(files)
            if bytes(file[:2].tolist()) == JPEG and batch.paths[i] not in self._refused
        ]
        images = dict(zip(ours, self._all([files[i] for i in ours], [batch.paths[i] for i in ours]), strict=True))
        return [
            images[i] if images.get(i) is not None else self._by_pillow(file, path)
            for i, (file, path) in enumerate(zip(files, batch.paths, strict=True))
        ]

    def _all(self, files: list[torch.Tensor], paths: list[str]) -> list[torch.Tensor | None]:
        """Each decoded, None where it is refused."""
        if not files:
            return []
        try:
            return list(self._jpegs(files))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if len(files) > 1:
                return [self._all([file], [path])[0] for file, path in zip(files, paths, strict=True)]
            self._refused.add(paths[0])
            print(f"{paths[0]} is left to Pillow: {' '.join(str(error).split())[:200]}", flush=True)
            return [None]

    def _by_pillow(self, file: torch.Tensor, path: str) -> torch.Tensor:
        with reading(path), Image.open(io.BytesIO(file.numpy().tobytes())) as image:
            pixels: torch.Tensor = tf.pil_to_tensor(image.convert("RGB"))
        return pixels.to(self._device)


def _plain_jpeg() -> torch.Tensor:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    return torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)
