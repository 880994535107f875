"""What a rank needs to know of a kind of model: a module each, found by the job's task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from mlperf_exp.train.feed import Batch, Source
from mlperf_exp.train.job import Job, TextTask
from mlperf_exp.train.learner import Learner
from mlperf_exp.train.torchrun import Torchrun


class Work(Protocol):
    """A module that says how its kind is computed, read and logged."""

    METRIC: str  # what is evaluated, by its one name

    def learner(self, job: Job) -> Learner:
        """The network with random weights, the same on every rank, and how it learns."""

    def data(self, job: Job, rank: int) -> tuple[Source, Any]:
        """A rank's micro-batches to train on, and a loader of its share of the validation set."""

    def random_batch(self, job: Job, rank: int) -> Batch:
        """A micro-batch to warm up on."""

    def strategy(self, job: Job, environment: Torchrun) -> Any:
        """Lightning's strategy."""

    def precision(self, job: Job) -> str:
        """Lightning's name of it."""

    def log_settings(self, job: Job) -> Iterator[tuple[str, Any]]:
        """Keys and values of MLPerf's log that only this kind has, hyperparameters above all."""

    def log_block(self, job: Job, first_step: int, end_step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The metadata of a block's start and of its stop."""

    def log_place(self, job: Job, step: int) -> dict[str, Any]:
        """The metadata of an evaluation."""

    def log_value(self, value: float) -> float:
        """The metric in the log's unit."""

    def epoch(self, job: Job, step: int) -> float:
        """The epoch of an evaluation, as progress is told."""


def of(job: Job) -> Work:
    """The work that a job is."""
    if isinstance(job.task, TextTask):
        from mlperf_exp.train.text import work

        return work
    from mlperf_exp.train import image_work

    return image_work
