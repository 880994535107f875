"""What reads and decodes training images: a module each, found by its name in the job.

All of them take the samples in the order of :func:`mlperf_exp.train.feed.places`, and of each image the part that
:class:`mlperf_exp.train.images.Images` draws.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from mlperf_exp.train.feed import Source
from mlperf_exp.train.images import Images
from mlperf_exp.train.job import Job

_MODULES = {"torchvision": "pixels", "nvjpeg": "nvjpeg", "dali": "dali"}


class Loading(Protocol):
    """A module that reads images."""

    def data(self, job: Job, rank: int, training: Images, validation: Images) -> tuple[Source, Any]:
        """A rank's micro-batches to train on, and an iterable over those of its share of the validation set.

        A batch is a uint8 tensor of shape (N, 3, size, size) and an int64 tensor of N classes.
        """


def of(name: str) -> Loading:
    """The loader of that name, one of :class:`mlperf_exp.config.Loader`."""
    return cast("Loading", import_module(f"{__name__}.{_MODULES[name]}"))
