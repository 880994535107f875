"""The measured process's side of MLflow: starts ``python -m mlperf_exp.track`` and, at the end, waits for it.

Nothing here imports MLflow, speaks to a server or raises: tracking can fail, the run cannot fail by it. The two
processes share the run's folder, and one pipe by which the run says that it has written all that it will.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlperf_exp.config import Tracking
from mlperf_exp.credentials import has_credentials, redact
from mlperf_exp.files import write_json
from mlperf_exp.track.content import clean_tags, flatten

OPTIONS = "tracking.json"  # written here, read by the tracker
STATE = "mlflow_run.json"  # written by the tracker: which MLflow run this is, how far it came, what is wrong
LOG = "tracking.log"
RESULT = "result.json"
LIVE = "live.jsonl"
SWEEP_TRACKER = "MLPERF_EXP_SWEEP_TRACKER"  # in a job's environment: the sweep whose runs one process tracks
# In a job's environment on another machine, as JSON: the sweep's folder and MLflow's address as the submitting side has
# them. That side tells MLflow.
LATER = "MLPERF_EXP_TRACK_LATER"

_HAND_OVER_S = 2.0  # how long a sweep's job waits for MLflow at its end


@dataclass(frozen=True, slots=True)
class TrackOutcome:
    """How tracking ended. ``message`` is one line for the user; ``seconds`` is how long the end waited for it."""

    ok: bool
    message: str
    mlflow_run_id: str | None = None
    seconds: float = 0.0


class Tracker:
    """One run's tracking process; made by ``start``."""

    def __init__(self, run_dir: Path, uri: str | None, problem: str | None = None) -> None:
        self.run_dir = run_dir
        self.uri = uri  # None: tracking is off
        self._problem = problem
        self._process: subprocess.Popen[bytes] | None = None
        self._options: dict[str, Any] = {}
        self._of_sweep = self._later = False

    @classmethod
    def start(
        cls,
        run_dir: Path,
        config: Tracking,
        run_id: str,
        run_name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        sweep_dir: Path | None = None,
    ) -> Tracker:
        """Start tracking the run in ``run_dir``; returns at once and never raises.

        Args:
            run_dir: the run's folder, which exists.
            config: where MLflow is. A relative path in ``uri`` counts from the working directory.
            run_id: the run's own id; MLflow gets exactly one run with it.
            run_name: shown in MLflow.
            tags: known at the start; the tags of the result come on top.
            params: nested configuration that MLflow shows from the start; the result's is added at the end.
            sweep_dir: the sweep that the run is a job of. Its MLflow run is the parent of this one.
        """
        run_dir = run_dir.absolute()
        if not config.enabled:
            return cls(run_dir, None)
        tracker = cls(run_dir, absolute_uri(config.uri))
        if has_credentials(config.uri):
            tracker._problem = (
                f"tracking.uri: {redact(config.uri)} holds credentials, so nothing was sent. "
                "Give them by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
            return tracker
        options = {
            "uri": tracker.uri,
            "experiment": config.experiment,
            "interval_s": config.interval_s,
            "run_id": run_id,
            "run_name": redact(run_name),
            "tags": clean_tags(tags or {}),
            "params": flatten(params or {}),
            "started_at": time.time(),
            "hostname": socket.gethostname(),
            "parent_pid": os.getpid(),
            "parent_started_at": psutil.Process().create_time(),
            "sweep": str(sweep_dir.absolute()) if sweep_dir else None,
        }
        later = os.environ.get(LATER)
        if later:
            tracker._later = True
            options |= {**json.loads(later), "parent_pid": None, "later": True}
        tracker._options = options
        try:
            write_json(run_dir / OPTIONS, options)
            if sweep_dir is not None and os.environ.get(SWEEP_TRACKER) == str(sweep_dir.absolute()):
                tracker._of_sweep = True  # one process tracks all of the sweep's runs
            elif not later:
                tracker._spawn("--supervised")
        except OSError as error:
            tracker._problem = f"tracking: MLflow's process did not start: {error}"
        return tracker

    @property
    def pid(self) -> int | None:
        """The tracking process; ``None`` where none was started."""
        return self._process.pid if self._process else None

    @property
    def by_another(self) -> bool:
        """Whether nobody in this process has to wait for MLflow: a sweep's own process tracks it, or none does."""
        return self._of_sweep or self.uri is None

    @property
    def run_id(self) -> str | None:
        """MLflow's run, as far as it is known now."""
        found: str | None = read_object(self.run_dir / STATE).get("mlflow_run_id")
        return found

    def problem(self) -> str | None:
        """What keeps MLflow from being reached now, in one line; ``None`` if nothing is known."""
        if self._problem or self.uri is None:
            return self._problem
        error = read_object(self.run_dir / STATE).get("error")
        return f"tracking.uri: MLflow at {redact(self.uri)}: {error}" if error else None

    def finish(self, timeout_s: float) -> TrackOutcome:
        """Wait until MLflow has everything, ``timeout_s`` at most; call it once all files of the run are written.

        Without a ``result.json`` the MLflow run is marked as interrupted.
        """
        started = time.monotonic()
        if self.uri is None:
            return TrackOutcome(True, "tracking is off")
        if self._later:
            with contextlib.suppress(OSError):
                write_json(self.run_dir / OPTIONS, {**self._options, "written": True})
            return TrackOutcome(True, "MLflow is told by the side that submitted the run")
        if self._of_sweep:
            return self._hand_over(started, min(timeout_s, _HAND_OVER_S))
        if self._process is None:
            return self._failed(self._problem or "tracking: not started", started)
        deadline = started + timeout_s
        code = self._tell_and_wait(deadline)
        if code is not None and code < 0:
            # Killed from outside (by an operator, or for memory): a second one sends what the first did not.
            with contextlib.suppress(OSError):
                self._spawn("--supervised")
                code = self._tell_and_wait(deadline)
        state = read_object(self.run_dir / STATE)
        run_id, uri = state.get("mlflow_run_id"), redact(self.uri)
        if code is None:
            return self._failed(f"tracking.uri: MLflow at {uri} did not answer within {timeout_s:g} s", started, run_id)
        if code or not state.get("ended"):
            error = state.get("error") or f"its process ended with status {code}, see {self.run_dir / LOG}"
            return self._failed(f"tracking.uri: MLflow at {uri}: {error}", started, run_id)
        with contextlib.suppress(OSError):
            if not (self.run_dir / LOG).stat().st_size:
                (self.run_dir / LOG).unlink()  # it had nothing to say
        return TrackOutcome(True, f"MLflow run {run_id} at {uri}", run_id, time.monotonic() - started)

    def _hand_over(self, started: float, timeout_s: float) -> TrackOutcome:
        """Tell the sweep's process that all is written; wait a little, so that it does not disturb the next job."""
        with contextlib.suppress(OSError):
            say_written(self.run_dir)
        while True:
            state = read_object(self.run_dir / STATE)
            if state.get("ended") or state.get("error") or time.monotonic() - started > timeout_s:
                break
            time.sleep(0.05)
        run_id, seconds = state.get("mlflow_run_id"), time.monotonic() - started
        if state.get("ended"):
            return TrackOutcome(True, f"MLflow run {run_id} at {redact(self.uri or '')}", run_id, seconds)
        return TrackOutcome(True, "the sweep's tracking sends it later", run_id, seconds)

    def _spawn(self, *flags: str) -> None:
        with (self.run_dir / LOG).open("ab") as log:
            # A session of its own: Ctrl-C reaches the run, and the run decides what MLflow is told.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlperf_exp.track", str(self.run_dir), *flags],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _tell_and_wait(self, deadline: float) -> int | None:
        """Say that the run has written everything; the tracker's exit status, ``None`` if it had to be killed."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is dead: wait() tells
            self._process.stdin.write(b"done")
            self._process.stdin.close()
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return None

    def _failed(self, problem: str, started: float, run_id: str | None = None) -> TrackOutcome:
        remedy = f"The run is kept in {self.run_dir}; send it later with: python -m mlperf_exp.track {self.run_dir}"
        return TrackOutcome(False, f"{problem}. {remedy}", run_id, time.monotonic() - started)


def say_written(run_dir: Path) -> None:
    """Tell whoever tracks the run that nothing more will be written in its folder.

    Raises:
        OSError: the folder cannot be written to.
    """
    options = read_object(run_dir / OPTIONS)
    if options:
        write_json(run_dir / OPTIONS, {**options, "written": True})


def go_on(run_dir: Path) -> None:
    """Forget that MLflow's run has ended: a run that was interrupted goes on in its folder, and in that MLflow run."""
    state = read_object(run_dir / STATE)
    if state.get("ended") is not None:
        write_json(run_dir / STATE, {**state, "ended": None})


def absolute_uri(uri: str) -> str:
    """``uri`` with a relative path (SQLite, file or plain) made absolute, so that it means the same everywhere."""
    match = re.fullmatch(r"(sqlite:///|file:(?!/))?([^:?]*)(\?.*)?", uri)
    if match is None or not match[2] or match[2].startswith("/"):
        return uri
    return f"{match[1] or ''}{Path(match[2]).absolute()}{match[3] or ''}"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
