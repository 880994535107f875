"""What the plan and the record need to know of a kind of model that is trained: a module each; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlperf_exp.config import Config, LanguageModel, Model
from mlperf_exp.messages import Derived, Plan
from mlperf_exp.train.job import Optimization, Task
from mlperf_exp.train.rules import TrainingBenchmark


@dataclass(frozen=True, slots=True)
class TrainingData:
    """``path`` is None for synthetic samples."""

    path: Path | None
    train_samples: int
    eval_samples: int

    def __len__(self) -> int:
        return self.train_samples


@dataclass(frozen=True, slots=True)
class Schedule:
    """The last step of the optimizer, the first one after which is evaluated, and the steps between two evaluations."""

    max_steps: int
    first_eval: int
    eval_every: int


class Kind(Protocol):
    """A module that says how its kind of model is planned, found, judged and counted."""

    KEYS: tuple[str, ...]  # of the scenario and the backend, which no other kind has
    NOUN: str  # what a sample is, in the plural
    LIKE: TrainingBenchmark  # whose log a model of no benchmark writes
    READERS: int  # more processes than that are of no use to read for one rank

    def plan(self, config: Config, derived: list[Derived]) -> dict[str, Any]:
        """Fill ``config.scenario`` in; the answer says how a step is spread over ranks, and computed.

        Raises:
            UserError: it cannot fit, or the batch does not divide.
        """

    def find(self, plan: Plan) -> TrainingData:
        """Find and count the samples, before anything is started.

        Raises:
            UserError: they are not there, or are of another model.
        """

    def task(self, plan: Plan) -> Task:
        """The kind's part of the job."""

    def optimization(self, plan: Plan, train_samples: int) -> Optimization:
        """The optimizer and its schedule, in steps."""

    def schedule(self, plan: Plan, train_samples: int) -> Schedule:
        """When the run is evaluated, and when it ends."""

    def closed(self, plan: Plan, known: TrainingBenchmark, found: dict[str, Any]) -> Iterator[str]:
        """A sentence for each of the closed division's rules that the plan does not keep; ``found`` is the record."""

    def sample_flops(self, plan: Plan) -> float | None:
        """Operations of a sample's forward and backward pass by the network's own count; None: not known."""

    def sample_tokens(self, plan: Plan) -> int | None:
        """Tokens that a sample trains on; None: a sample is no text."""


def every() -> tuple[Kind, ...]:
    """All kinds."""
    from mlperf_exp.train import image_kind
    from mlperf_exp.train.text import kind

    return (image_kind, kind)


def of(model: Model) -> Kind:
    """The kind of a model."""
    images, text = every()
    return text if isinstance(model, LanguageModel) else images
