"""The order of the training samples, and loaders that keep to it from any step on.

An epoch's order is a permutation drawn from (seed, epoch). Step s of an epoch takes the next ``global_batch`` samples;
they are cut into micro-batches, dealt first over the ranks and then over the accumulation. So the same samples make
the same step however many ranks share them, and a run that is continued at step s reads on where it stopped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlperf_exp.train.job import Job

Batch = Any  # a micro-batch as its kind's learner takes it


def places(job: Job, rank: int, first_step: int) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) pairs of each micro-batch of ``rank``, from ``first_step`` to the end of the training."""
    per_epoch = job.steps_per_epoch
    for step in range(first_step, job.total_steps):
        epoch, within = divmod(step, per_epoch)
        if step == first_step or within == 0:
            order = np.random.default_rng([job.seed, epoch]).permutation(job.train_samples)
        start = within * job.global_batch
        for part in range(job.accumulation):
            low = start + (part * job.world + rank) * job.micro_batch
            yield [(epoch, int(index)) for index in order[low : low + job.micro_batch]]


class Source(Protocol):
    """Where micro-batches come from: an endless iterator over what :func:`places` lists."""

    def open(self, first_step: int) -> Iterator[Batch]:
        """The micro-batches from ``first_step`` on."""


class UnreadableSample(RuntimeError):
    """A sample that cannot be read; names its file."""


class Files:
    """Samples read by worker processes, which go on without a break at the ends of epochs.

    ``samples`` maps an (epoch, index) pair to a sample; ``collate`` makes a batch of them, torch's own way where None.
    """

    def __init__(
        self, job: Job, rank: int, samples: Dataset[Any], collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self._job, self._rank, self._samples, self._collate = job, rank, samples, collate

    def open(self, first_step: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        job = self._job
        loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=_Places(job, self._rank, first_step),
            collate_fn=self._collate,
            num_workers=job.workers,
            pin_memory=job.device == "cuda" and self._collate is None,
            prefetch_factor=4 if job.workers else None,
            multiprocessing_context="fork" if job.workers else None,  # shares the list of files
            worker_init_fn=begin_reading,
        )
        return iter(loader)


class Synthetic:
    """One random micro-batch over and over, on the device, which is known when it is asked for: for speed only."""

    def __init__(self, job: Job, make: Callable[[], Batch]) -> None:
        self._job, self._make = job, make

    def open(self, first_step: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        batch = self._make()
        for _ in range((self._job.total_steps - first_step) * self._job.accumulation):
            yield batch


class Stages:
    """What Lightning takes for its epochs: the micro-batches up to the next evaluation.

    Lightning's own epochs begin anew at each end and cannot begin in the middle; a stage can be of any length. It has
    no ``len``, so that Lightning looks one batch ahead to see its end. ``waited_s`` adds up the time spent waiting.
    """

    def __init__(self, job: Job, source: Source) -> None:
        self._job, self._source, self._next = job, source, 0
        self._batches: Iterator[Batch] | None = None
        self.waited_s = 0.0

    def start_at(self, step: int) -> None:
        """Where to begin; before anything was read."""
        self._next = step

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is None:
            self._batches = self._source.open(self._next)
        ends = [step for step in self._job.evaluation_steps() if step > self._next]
        end = min([*ends[:1], self._job.total_steps])
        for _ in range((end - self._next) * self._job.accumulation):
            began = time.perf_counter()
            batch = next(self._batches)
            self.waited_s += time.perf_counter() - began
            yield batch
        self._next = end

    def close(self) -> None:
        """Nothing more is read; ends what works ahead."""
        if isinstance(self._batches, Generator):
            self._batches.close()


class _Places:
    """:func:`places` as a batch sampler."""

    def __init__(self, job: Job, rank: int, first_step: int) -> None:
        self._arguments = job, rank, first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return places(*self._arguments)


def begin_reading(_: int) -> None:
    """A worker process begins.

    Many workers with many threads each would only stand in each other's way. What the parent left to be collected is
    not collected here, where the threads that it may wait for are missing.
    """
    gc.freeze()
    torch.set_num_threads(1)
