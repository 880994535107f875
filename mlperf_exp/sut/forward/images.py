"""Image classification as a program: pixels in, class numbers out.

Samples are bytes, cut to size (``uint8 [side, side, 3]``); the network's normalization is part of what is timed, on the
device. Half as many bytes are copied as with half-precision floats, and nothing is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlperf_exp.config import Compile, ImageClassifier
from mlperf_exp.sut.forward.fuse import fold_batch_norm, fuse, pad_input_channels
from mlperf_exp.sut.forward.program import Buffer

_CHANNELS = 4  # three, filled up: tensor cores read channels in groups


class ImageProgram:
    """``images`` holds all samples, ``uint8 [samples, side, side, 3]``, on disk or in memory."""

    def __init__(self, model: ImageClassifier, network: nn.Module, images: Any, dtype: str, kernels: Compile) -> None:
        self._model, self._network, self._images = model, network, images
        self._dtype, self._kernels = getattr(torch, dtype), kernels
        self._side = int(images.shape[1])
        self._places = np.full(len(images), -1, dtype=np.int64)  # of each sample among the loaded ones
        self._loaded: Any = None
        self._each: Any = ()  # the loaded images one by one
        self._mean: Any = None
        self._scale: Any = None

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """An image is one unit."""
        return np.ones(len(samples), dtype=np.int64)

    def load(self, samples: Sequence[int]) -> None:
        """Read the images into memory, pinned where there is a GPU."""
        chosen = np.asarray(samples, dtype=np.int64)
        shape = (len(chosen), self._side, self._side, 3)
        if self._loaded is None or tuple(self._loaded.shape) != shape:
            self._loaded = None
            self._loaded = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        into = self._loaded.numpy()
        order = np.argsort(chosen, kind="stable")  # as they lie on disk
        for place in order:
            into[place] = self._images[chosen[place]]
        self._each = self._loaded.unbind(0)
        self._places[:] = -1
        self._places[chosen] = np.arange(len(chosen))

    def most(self, size: int) -> int:
        """One sample a unit."""
        return size

    def inputs(self, size: int) -> tuple[Buffer, ...]:
        """Pixels."""
        return (Buffer((size, self._side, self._side, 3), "uint8"),)

    def output(self, size: int) -> Buffer:
        """Class numbers."""
        return Buffer((size,), "int32")

    def fill(self, samples: NDArray[np.int64], buffers: Sequence[Any]) -> None:
        """Gather the images."""
        places = torch.from_numpy(self._places[samples])
        torch.index_select(self._loaded, 0, places, out=buffers[0][: len(samples)])

    def targets(self, device: Sequence[Any]) -> Sequence[Any]:
        """The images one by one: to part them takes Python a microsecond each."""
        return list(device[0].unbind(0))

    def send(self, samples: NDArray[np.int64], buffers: Sequence[Any], targets: Sequence[Any]) -> None:  # noqa: ARG002
        """One copy an image, from where it lies pinned: to gather them first would move twice the bytes."""
        images = [self._each[place] for place in self._places[samples].tolist()]
        torch._foreach_copy_(targets[: len(images)], images, non_blocking=True)

    def prepare(self, device: Any) -> None:
        """Fold, fuse and move the network."""
        cuda = torch.device(device).type == "cuda"
        if self._kernels is Compile.none:
            network: Any = copy.deepcopy(self._network).eval()
        elif self._kernels is Compile.fused:
            network = fuse(self._network)
        else:
            network = fold_batch_norm(self._network)
        self._channels = _CHANNELS if cuda else 3
        if cuda:
            torch.backends.cudnn.benchmark = True
            pad_input_channels(network, self._channels)
        network = network.requires_grad_(False).to(device=device, dtype=self._dtype)
        network = network.to(memory_format=torch.channels_last)
        if cuda and self._kernels is Compile.fused:
            from mlperf_exp.sut.forward.kernels import replace_max_pools

            replace_max_pools(network)
        if self._kernels is Compile.inductor:
            network = torch.compile(network, dynamic=False)
        elif self._kernels is Compile.max_autotune:
            network = torch.compile(network, dynamic=False, mode="max-autotune-no-cudagraphs")
        mean, std = (torch.tensor(values, dtype=torch.float32) * 255 for values in (self._model.mean, self._model.std))
        self._mean, self._scale = mean.to(device), (1 / std).to(device)
        self._normalize: Any = self._pixels
        if cuda and self._kernels is not Compile.none:
            from mlperf_exp.sut.forward import kernels

            mean, scale = (torch.nn.functional.pad(values, (0, 1)) for values in (self._mean, self._scale))
            self._normalize = lambda pixels: kernels.normalize(pixels, mean, scale, self._dtype)
        self._ready = network

    def forward(self, *inputs: Any) -> Any:
        """Normalize, compute, take the best class."""
        return self._ready(self._normalize(inputs[0])).argmax(1).to(torch.int32)

    def _pixels(self, pixels: Any) -> Any:
        """Bytes ``[n, side, side, 3]`` as normalized images ``[n, channels, side, side]`` in channels-last layout."""
        made = torch.zeros((*pixels.shape[:3], self._channels), dtype=self._dtype, device=pixels.device)
        made[..., :3] = (pixels.float() - self._mean) * self._scale
        return made.permute(0, 3, 1, 2)

    def answers(self, samples: NDArray[np.int64], output: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Four bytes a sample: its class as int32."""
        return output, np.arange(len(samples) + 1, dtype=np.int64) * 4
