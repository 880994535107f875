"""The contract between LoadGen's driver and a system under test.

The driver hands over queries and a :class:`Sink`; the system answers through the sink, from any thread. Nothing that
a system does may hang or crash LoadGen: every submitted query is completed exactly once, with tokens or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from mlperf_exp.messages import Answers, Completion, Query


class Sink(Protocol):
    """Where a system's answers go; every method is safe to call from any thread and stamps the time itself."""

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        """The first output token of these queries exists now; ``tokens`` are their ids, one a row, where known."""

    def complete(self, completions: Sequence[Completion]) -> None:
        """These queries are finished now; a second completion of a query is counted and ignored."""

    def complete_many(self, answers: Answers) -> None:
        """As :meth:`complete`, for many queries whose answers lie in one array; for tens of thousands a second."""

    def failed(self, reason: str) -> None:
        """The whole system is lost: all that is outstanding ends with this error and the run as failed."""


class SystemUnderTest(Protocol):
    """A system that LoadGen can load."""

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        """Load, compile and warm up; return the seconds of each phase, such as ``{"start_s": 31.2}``.

        ``samples`` are of the model's kind, such as :class:`mlperf_exp.messages.Sample` for texts.

        Raises:
            UserError: the system cannot start because of what the user asked for.
            RunFailed: it did not start for another reason.
        """

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Take the queries and return at once; never raises. Called from LoadGen's thread.

        Where LoadGen waits for each query before it sends the next, a system may answer before it returns.
        """

    def reset(self, samples: Sequence[Any]) -> None:
        """Make the started system, on which nothing is outstanding, as after its start: caches empty, these samples.

        Raises:
            RunFailed: it cannot be used again.
        """

    def stop(self) -> None:
        """Release everything; works after a failed start, and twice."""


@runtime_checkable
class HoldsSamples(Protocol):
    """A system that LoadGen tells which samples come next, outside of the timed part."""

    def load(self, samples: Sequence[int]) -> None:
        """Bring these samples, by their places in the data set, into memory. Called from LoadGen's thread."""

    def unload(self, samples: Sequence[int]) -> None:
        """These are not asked for any more."""


@runtime_checkable
class Reports(Protocol):
    """A system that knows figures of its own."""

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """Metrics such as ``peak_memory_gib``, and warnings, after a measurement."""


@runtime_checkable
class Computes(Protocol):
    """A system whose network runs in this process."""

    @property
    def computes(self) -> bool:
        """Whether its threads take processor time for the answers themselves: a busy one is then not the harness."""
