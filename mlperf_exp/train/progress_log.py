"""``train/progress.jsonl``: what rank 0 writes while it trains, and what is made of it; imports no torch.

A run that is continued appends: each life begins with :class:`Started`, and what an earlier life did after the step at
which the next one began was done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FILE = "progress.jsonl"


@dataclass(frozen=True, slots=True)
class Started:
    """The run has started, at optimizer step ``first_step``."""

    at: float  # Unix seconds
    first_step: int


@dataclass(frozen=True, slots=True)
class Line:
    """Steps up to ``step``, since the line before.

    ``samples_per_second`` is over all ranks; ``waited_share`` is rank 0's share of the time spent waiting for data;
    evaluation and checkpoints are not in ``seconds``.
    """

    at: float
    step: int
    epoch: float
    loss: float
    learning_rate: float
    seconds: float
    samples_per_second: float
    waited_share: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation: ``value`` of the metric, seconds it took, seconds since the run's start."""

    at: float
    step: int
    epoch: float
    metric: str
    value: float
    eval_s: float
    run_s: float


Entry = Started | Line | Evaluated
_KINDS: tuple[type[Entry], ...] = (Started, Line, Evaluated)


@dataclass(slots=True)
class History:
    """All that counts of a progress log, in the order of steps; ``steady`` are the last life's lines but its first.

    The first line of a life holds what is done once: kernels are chosen, caches filled.
    """

    lines: list[Line] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    steady: list[Line] = field(default_factory=list)
    lives: int = 0

    def add(self, entry: Entry) -> None:
        """Take the log's next entry."""
        if isinstance(entry, Started):
            self.lines = [line for line in self.lines if line.step <= entry.first_step]
            self.evaluations = [it for it in self.evaluations if it.step <= entry.first_step]
            self.steady, self.lives = [], self.lives + 1
        elif isinstance(entry, Line):
            self.lines.append(entry)
            self.steady.append(entry)
        else:
            self.evaluations.append(entry)

    def metrics(self) -> dict[str, float]:
        """``train_samples_per_second`` without evaluation, ``data_wait_percent``, ``loss`` and the last evaluation."""
        found: dict[str, float] = {}
        steady = self.steady[1:] or self.steady
        seconds = sum(line.seconds for line in steady)
        if seconds > 0:
            found["train_samples_per_second"] = sum(line.samples_per_second * line.seconds for line in steady) / seconds
            found["data_wait_percent"] = 100 * sum(line.waited_share * line.seconds for line in steady) / seconds
        if self.lines:
            last = self.lines[-1]
            found |= {"loss": last.loss, "epochs": last.epoch, "steps": float(last.step)}
        if self.steady:  # what the last life is known to have trained on, whatever its end
            found["completed"] = float(round(sum(line.samples_per_second * line.seconds for line in self.steady)))
        if self.evaluations:
            found[self.evaluations[-1].metric] = self.evaluations[-1].value
        return found


class Follower:
    """Reads a progress log as it grows; a line that is not whole yet is left for the next look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[Entry]:
        """The entries since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [entry for line in whole.splitlines() if (entry := _parsed(line)) is not None]


def read(path: Path) -> History:
    """The history in ``path``; empty where there is none."""
    history = History()
    for entry in Follower(path).new():
        history.add(entry)
    return history


def append(path: Path, entry: Entry) -> None:
    """One JSON line, written with one system call."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(handle, (json.dumps(asdict(entry)) + "\n").encode())
    finally:
        os.close(handle)


def _parsed(line: bytes) -> Entry | None:
    """The entry of a line, known by its keys; None for a line that was cut short."""
    try:
        values: Mapping[str, Any] = json.loads(line)
    except ValueError:
        return None
    for kind in _KINDS:
        if isinstance(values, dict) and set(values) == {one.name for one in fields(kind)}:
            return kind(**values)
    return None
