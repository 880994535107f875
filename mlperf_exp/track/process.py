"""What every tracking process needs: who started it, how to track, and that it is the only one for its folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from mlperf_exp.track import content
from mlperf_exp.track.tracker import OPTIONS, RESULT, absolute_uri, read_object

PAUSES_S = (0.0, 1.0, 3.0)  # before each attempt to deliver the whole


class Parent:
    """The process that measures: whether it has said that all is written, and whether it lives."""

    def __init__(self, options: Mapping[str, Any], run_dir: Path, supervised: bool) -> None:
        self._pid, self._started_at = options.get("parent_pid"), options.get("parent_started_at", 0.0)
        self._result = run_dir / RESULT
        self._supervised = supervised

    def wait(self, seconds: float) -> None:
        """Sleep, shorter if the parent speaks up or dies."""
        if self._supervised:
            select.select([sys.stdin], [], [], seconds)
        else:
            time.sleep(seconds)

    def done(self) -> bool:
        """Whether nothing more will come."""
        # Readable: "done", or the end of the pipe. A process forked from the parent may hold the pipe open for longer
        # than the parent lives, so that the parent itself is looked at too.
        spoken = select.select([sys.stdin], [], [], 0)[0] if self._supervised else self._result.exists()
        return bool(spoken) or not self.alive()

    def alive(self) -> bool:
        """Whether the very process still runs: a later one may have its number."""
        if self._pid is None:
            return False
        try:
            process = psutil.Process(self._pid)
            same = abs(process.create_time() - self._started_at) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def read_options(run_dir: Path, uri: str | None) -> dict[str, Any]:
    """How to track: as the run wrote it, or from the result of a run that was not tracked; ``uri`` overrides."""
    options = read_object(run_dir / OPTIONS)
    result = read_object(run_dir / RESULT)
    if not options and result:
        tracking = result["plan"]["config"].get("tracking") or {}
        options = {
            "uri": absolute_uri(tracking.get("uri", "sqlite:///outputs/mlflow.db")),
            "experiment": tracking.get("experiment", "mlperf_exp"),
            "interval_s": 5.0,
            "run_id": result["run"]["id"],
            "run_name": result["run"]["name"],
            "started_at": content.unix_seconds(result["run"]["started_at"]),
        }
    if not options:
        raise SystemExit(f"RUN_DIR: {run_dir} holds neither {OPTIONS} nor {RESULT}. Give the folder of a run")
    return {**options, "uri": absolute_uri(uri)} if uri else options


@contextlib.contextmanager
def alone_in(run_dir: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone sends this run; with ``wait`` once every other has ended."""
    handle = os.open(run_dir, os.O_RDONLY)  # the folder itself is the lock: no file is left behind
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
