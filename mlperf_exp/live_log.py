"""``live.jsonl``: one JSON line a look at the run, for MLflow's live curves and the report's time line.

A line is written with one system call, so that a reader never waits for a buffer. Whatever goes wrong here, such as a
full disk, stays here: nothing is raised into the measurement.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from mlperf_exp.records import State


class LiveLog:
    """Appends to ``path``. ``error`` is the first thing that went wrong, ``None`` as long as nothing did."""

    def __init__(self, path: Path) -> None:
        self.error: str | None = None
        self._handle = -1
        self._torn = False
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._remember(error)

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(
        self, phase: str, live: State, expected: int | None = None, machine: Mapping[str, float] | None = None
    ) -> None:
        """Write one line: ``at`` (Unix seconds), phase, ``expected`` queries, ``live`` and ``machine``; NaN is null."""
        if self._handle < 0:
            return
        values = {"at": round(time.time(), 3), "phase": phase, "expected": expected, **asdict(live), **(machine or {})}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        # After a line that a full disk cut short, a line break first: only the torn line is lost to the reader.
        line = ("\n" if self._torn else "") + json.dumps(finite) + "\n"
        try:
            written = os.write(self._handle, line.encode())
        except OSError as error:
            self._remember(error)
            return
        self._torn = written < len(line)
        if self._torn and self.error is None:
            self.error = "live.jsonl: a line was cut short; is the disk full?"

    def close(self) -> None:
        """Close the file; later lines are dropped."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            try:
                os.close(handle)
            except OSError as error:  # network file systems report a full disk only here
                self._remember(error)

    def _remember(self, error: OSError) -> None:
        self.error = self.error or f"live.jsonl: {error.strerror or error}"
