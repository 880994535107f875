"""Samples of :mod:`.packing` as tensors, for training in the job's order and for validation in the files'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from mlperf_exp.train import feed
from mlperf_exp.train.job import Job, TextTask
from mlperf_exp.train.text.packing import Packed


class UnreadableTokens(feed.UnreadableSample):
    """Token ids that the model does not have; names the files."""


class _Samples:
    """Opens its files at the first sample: MLPerf's clock runs by then. Makes sure of the vocabulary."""

    def __init__(self, paths: Sequence[Path], task: TextTask, seed: int | None) -> None:
        self._paths, self._task, self._seed = paths, task, seed
        self._packed: Packed | None = None

    def open(self) -> Packed:
        """The samples; the order of many texts takes seconds to make, once."""
        if self._packed is None:
            self._packed = Packed(self._paths, self._task.sequence_length, self._seed)
        return self._packed

    def sample(self, index: int) -> torch.Tensor:
        """Token ids (S + 1,), int64."""
        tokens = self.open()[index]
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._task.vocab_size:
            names, odd = ", ".join(str(path) for path in self._paths), high if low >= 0 else low
            known = f"the model's {self._task.vocab_size:,}"
            raise UnreadableTokens(f"token {odd} in {names} is not of {known}: they are of another tokenizer")
        return torch.from_numpy(tokens)


class TrainingTexts(_Samples, Dataset[torch.Tensor]):
    """An (epoch, index) pair -> token ids; texts in an order drawn from the seed, the same in all epochs."""

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        return self.sample(place[1])


class ValidationTexts(_Samples, Dataset[tuple[torch.Tensor, float]]):
    """A rank's share of the first samples, each with a weight: all have as many, the last one perhaps of weight 0."""

    def __init__(self, paths: Sequence[Path], task: TextTask, samples: int, rank: int, world: int) -> None:
        super().__init__(paths, task, None)
        self._samples, self._rank, self._world = samples, rank, world

    def __len__(self) -> int:
        return -(-self._samples // self._world)

    def __getitem__(self, slot: int) -> tuple[torch.Tensor, float]:
        index = slot * self._world + self._rank
        return self.sample(min(index, self._samples - 1)), float(index < self._samples)


class Texts(feed.Files):
    """The training texts; opened in the rank, so that its readers share what was made."""

    def __init__(self, job: Job, rank: int, texts: TrainingTexts) -> None:
        super().__init__(job, rank, texts)
        self._texts = texts

    def open(self, first_step: int) -> Iterator[Any]:
        """See :class:`mlperf_exp.train.feed.Source`."""
        self._texts.open()
        return super().open(first_step)
