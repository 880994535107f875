"""What a run says while it lasts: on the terminal, and in ``live.jsonl`` for MLflow and for other terminals."""

from __future__ import annotations

import contextlib
import os
import sys
from types import TracebackType
from typing import Self, TextIO

from mlperf_exp import telemetry
from mlperf_exp.display import Display
from mlperf_exp.live_log import LiveLog
from mlperf_exp.messages import Plan
from mlperf_exp.records import State
from mlperf_exp.telemetry.tail import machine


class Progress:
    """The display and the live log as one; neither can end a run."""

    def __init__(self, plan: Plan) -> None:
        self._stream = _own_stderr()
        self._display = Display(plan.config.progress, self._stream)
        self._log = LiveLog(plan.run_dir / "live.jsonl")
        self._samples = plan.run_dir / telemetry.FILE
        self._phase = "prepare"
        self._expected: int | None = None

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._display.__exit__(kind, error, trace)
        if self._stream is not sys.stderr:
            with contextlib.suppress(OSError):
                self._stream.close()

    def phase(
        self, name: str, expected: int | None = None, expected_s: float | None = None, unit: str = "queries"
    ) -> None:
        """A phase begins; ``expected`` counts its queries or ``unit``, ``expected_s`` its seconds at least."""
        self._phase, self._expected = name, expected
        self._display.phase(name, expected, expected_s, unit)

    def update(self, live: State) -> None:
        """The state of the test now."""
        now = machine(self._samples)
        self._log.append(self._phase, live, self._expected, now)
        self._display.update(live, now)

    def score(self, done: int, total: int) -> None:
        """So many samples are scored."""
        self._display.score(done, total)


def _own_stderr() -> TextIO:
    """A stream of our own to where stderr goes now: an engine's start sends file descriptor 2 to a log meanwhile."""
    try:
        return os.fdopen(os.dup(2), "w", buffering=1)
    except OSError:
        return sys.stderr
