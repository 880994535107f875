"""A rank's share of the validation set, read by worker processes that stay for the next evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mlperf_exp.train.feed import begin_reading
from mlperf_exp.train.images import Images
from mlperf_exp.train.job import Job


def share(
    job: Job,
    rank: int,
    images: Images,
    samples: Dataset[Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """The batches of ``rank``; ``samples`` are the ``images`` in another form, for which there is ``collate``."""
    return DataLoader(
        samples or images,
        batch_size=job.micro_batch,
        sampler=[(0, index) for index in range(rank, len(images), job.world)],
        collate_fn=collate,
        num_workers=job.workers,
        pin_memory=job.device == "cuda" and collate is None,
        persistent_workers=job.workers > 0,
        worker_init_fn=begin_reading,
    )
