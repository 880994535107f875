"""What came of a job on other machines, and errors in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra_plugins.mlperf_launchers._cluster import LaunchError, Unreachable
from hydra_plugins.mlperf_launchers._ledger import Entry

from mlperf_exp.errors import ExperimentError, Interrupted, InvalidResult, RunFailed


@dataclass(slots=True)
class Outcome:
    """What came of a job. ``folder`` is that of its last attempt; None where it was never started."""

    number: int
    error: ExperimentError | None
    folder: Path | None = None
    seconds: float | None = None


def recorded(entry: Entry) -> Outcome:
    """The outcome of a job that was over when another process had it."""
    number, last = entry.spec.number, entry.tries[-1] if entry.tries else None
    error: ExperimentError | None = None
    if entry.status != "finished" or (last and last.reason):
        kinds = {"finished": InvalidResult, "interrupted": Interrupted}
        error = kinds.get(entry.status, RunFailed)(last.reason if last else f"job {number} was not started")
    return Outcome(number, error, last.attempt.folder if last else None)


def one_line(error: Exception) -> str:
    """An error as the end of a sentence; with its type where it is not one of ours."""
    ours = isinstance(error, ExperimentError | Unreachable | LaunchError)
    return " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())
