"""Images that worker processes read, decode and augment, by Pillow and torchvision."""

from __future__ import annotations

from typing import Any

from mlperf_exp.train.feed import Files, Source
from mlperf_exp.train.images import Images
from mlperf_exp.train.job import Job
from mlperf_exp.train.loaders.readers import share


def data(job: Job, rank: int, training: Images, validation: Images) -> tuple[Source, Any]:
    """See :class:`.Loading`."""
    return Files(job, rank, training), share(job, rank, validation)
