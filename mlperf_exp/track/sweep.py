"""A whole sweep in MLflow: a parent run, and below it a run for each job; one process for all of them.

It imports mlflow once, follows the job that runs, and sends each job's result when that is written. What MLflow does
not take is kept, and sent when it answers again: while the sweep lasts, at its end, or by a later
``python -m mlperf_exp.track SWEEP_DIR``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.sweep import record
from mlperf_exp.track.mirror import Mirror
from mlperf_exp.track.process import PAUSES_S, Parent, read_options
from mlperf_exp.track.tracker import OPTIONS, RESULT, read_object

_LONGEST_PAUSE_S = 60.0
_LOOK_S = 0.2
_LAST_JOB_S = 90.0


class SweepMirror:
    """A sweep's folder and its place in MLflow."""

    def __init__(self, sweep_dir: Path, options: Mapping[str, Any]) -> None:
        self.folder = sweep_dir
        self.parent = Mirror(sweep_dir, options)
        self._jobs: dict[Path, Mirror] = {}
        self._told: dict[str, Any] = {}

    @property
    def error(self) -> str | None:
        """What keeps MLflow from being reached; None while it is."""
        return next((mirror.error for mirror in (*self._jobs.values(), self.parent) if mirror.error), None)

    def unsent(self) -> list[Path]:
        """The folders of runs that MLflow does not have whole."""
        self._look()
        return [folder for folder, mirror in self._jobs.items() if mirror.ended in (None, "lost")]

    def follow(self) -> bool:
        """Send what is new of the jobs that run, and all of those that ended; False at the first that fails."""
        if not self.parent.attempt():
            return False
        for folder in self.unsent():
            mirror = self._jobs[folder]
            steps = (mirror.send_live, mirror.send_result) if self._over(folder) else (mirror.send_live,)
            if not mirror.attempt(*steps):
                return False
        return self._tell()

    def finish(self) -> bool:
        """Wait for the jobs' last words, send all that is missing, with a few attempts, and close the parent."""
        deadline = time.monotonic() + _LAST_JOB_S
        while time.monotonic() < deadline and not all(self._over(folder) for folder in self.unsent()):
            time.sleep(_LOOK_S)
        for pause in PAUSES_S:
            time.sleep(pause)
            if self.follow() and not self.unsent():
                return self.parent.attempt(lambda: self.parent.close_sweep(record.read(self.folder)))
        return False

    def _over(self, folder: Path) -> bool:
        """Whether nothing more is written in a run's folder."""
        options = read_object(folder / OPTIONS)
        ends = {job["folder"]: job["status"] for job in record.read(self.folder).get("jobs", ()) if job["folder"]}
        ended = ends.get(folder.name, "running") != "running"
        alive = options.get("later") or Parent(options, folder, supervised=False).alive()
        return bool(options.get("written")) or ended or not alive

    def _look(self) -> None:
        for path in sorted(self.folder.glob(f"*/{OPTIONS}")):
            if path.parent not in self._jobs:
                self._jobs[path.parent] = Mirror(path.parent, read_object(path))
        for path in sorted(self.folder.glob(f"*/{RESULT}")):  # runs whose tracking could not even be written down
            self._jobs.setdefault(path.parent, Mirror(path.parent, self._options(path.parent)))

    def _options(self, folder: Path) -> dict[str, Any]:
        with contextlib.suppress(SystemExit, KeyError, TypeError):
            return read_options(folder, None) | {"sweep": str(self.folder)}
        return {}

    def _tell(self) -> bool:
        counts = record.read(self.folder).get("counts") or {}
        if counts == self._told:
            return True
        if not self.parent.attempt(lambda: self.parent.send_counts(counts)):
            return False
        self._told = counts
        return True


def track_sweep(mirror: SweepMirror, launcher: Parent, interval_s: float) -> bool:
    """Follow the sweep until its launcher has said that it is over, or is gone; whether MLflow then has it all."""
    pause, due = interval_s, 0.0
    while not launcher.done():
        new = any(read_object(folder / OPTIONS).get("written") for folder in mirror.unsent())
        if time.monotonic() >= due or (new and pause == interval_s):
            pause = interval_s if mirror.follow() else min(2 * pause, max(interval_s, _LONGEST_PAUSE_S))
            due = time.monotonic() + pause
        launcher.wait(_LOOK_S)
    return mirror.finish()
