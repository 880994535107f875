"""What a sweep on this machine has beyond one batch of jobs: its lock, its record, and what an earlier start left."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.mlperf_launchers._job import Job, failed, placed
from hydra_plugins.mlperf_launchers._process import Worker, say
from hydra_plugins.mlperf_launchers._summary import Row
from omegaconf import DictConfig, OmegaConf

from mlperf_exp.config import Config, Tracking
from mlperf_exp.errors import InvalidResult
from mlperf_exp.sweep import earlier, record
from mlperf_exp.sweep.identity import Identity, varying
from mlperf_exp.sweep.record import JobEntry, SweepRecord
from mlperf_exp.sweep.text import count_line
from mlperf_exp.track.tracker import SWEEP_TRACKER, Tracker


class Sweep:
    """A sweep's folder, held for this process and its workers.

    Raises:
        UserError: another sweep writes there.
    """

    def __init__(self, folder: Path, config: DictConfig, max_parallel: int, retries: int, wait_s: float) -> None:
        folder = folder.absolute()
        self.lock = record.hold(folder, wait_s)
        before = record.read(folder)
        self.earlier = earlier.look(folder, before)
        self.continued = bool(before or self.earlier.finished or self.earlier.failed or self.earlier.odd)
        self._retries = retries
        self.kept: Worker | None = None  # between two batches: a process with an engine that the next may use
        self._life: tuple[int, int] | None = None
        self._searches = False
        self._tracker: Tracker | None = None
        self._tracking_timeout_s = 0.0
        self.record = SweepRecord(
            folder, ["python", *sys.orig_argv[1:]], [str(text) for text in config.hydra.overrides.task], max_parallel
        )

    def lifeline(self) -> int:
        """The end of a pipe that jobs hold; when the launcher dies, however it dies, the other one closes."""
        if self._life is None:
            self._life = os.pipe()
        return self._life[0]

    def cut_lifeline(self) -> None:
        """No job is left to hold it."""
        for descriptor in self._life or ():
            os.close(descriptor)
        self._life = None

    def add(
        self, rows: Sequence[Row], identities: Sequence[Identity], keys: Collection[str] | None = None
    ) -> list[JobEntry]:
        """Write down the jobs of a batch, none of them started; ``keys`` are those that its sweep varies, if known."""
        self._searches = self._searches or keys is not None
        own = varying([list(row.overrides) for row in rows], keys)
        entries = [
            JobEntry(row.number, list(row.overrides), pairs, identity.plan_hash)
            for row, pairs, identity in zip(rows, own, identities, strict=True)
        ]
        self.record.jobs += entries
        return entries

    def track(self, jobs: Sequence[Job | None]) -> None:
        """Start the process that keeps the sweep in MLflow, where its jobs want that; once for all batches."""
        configs = [job.config for job in jobs if job is not None and OmegaConf.get_type(job.config) is Config]
        if self._tracker is not None or not configs:
            return
        tracking = OmegaConf.to_object(configs[0].tracking)
        assert isinstance(tracking, Tracking)
        self._tracking_timeout_s = tracking.timeout_s
        self.save()
        tags = {"kind": "sweep", "overrides": " ".join(self.record.overrides)}
        folder = self.record.folder
        self._tracker = Tracker.start(folder, tracking, folder.name, f"sweep {folder.name}", tags)

    @property
    def env(self) -> dict[str, str]:
        """What tells the jobs that their sweep is tracked by one process."""
        tracked = self._tracker is not None and self._tracker.pid is not None
        return {SWEEP_TRACKER: str(self.record.folder)} if tracked else {}

    def end(self, interrupted: bool) -> None:
        """No job will follow: write so, and wait until MLflow has the sweep."""
        ends = {entry.status for entry in self.record.jobs}
        if interrupted or self.record.status == "interrupted":
            self.record.status = "interrupted"
        else:  # a search has tried what fails too
            self.record.status = "failed" if ends - {"finished"} and not self._searches else "finished"
        self.save(ended=True)
        self.finish_tracking()

    def finish_tracking(self) -> None:
        """Wait until MLflow has the sweep; say so where it has not."""
        tracker, self._tracker = self._tracker, None
        if tracker is None or tracker.uri is None:
            return
        outcome = tracker.finish(self._tracking_timeout_s)
        say(f"mlperf_exp: {outcome.message}{'; to see it: make ui' if outcome.ok else ''}\n")

    def finished_before(self, job: Job, entry: JobEntry) -> JobReturn | None:
        """What an earlier start of the sweep made of this job; None where it is to be run (again)."""
        folder = self.earlier.take(entry.plan_hash, job.folder)
        if folder is None:
            return None
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        entry.folder, entry.earlier = str(folder.relative_to(self.record.folder)), True
        run = result["run"]
        entry.started_at, entry.seconds = run["started_at"], result["phases"]["total_s"]
        entry.settle("finished", None, result)
        entry.ended_at = run["ended_at"]
        done = failed(placed(job, folder), InvalidResult(f"the run in {folder} is not valid"))
        if result["plan"]["config"].get("fail_on_invalid") and not result["verdict"]["valid"]:
            return done
        done.status, done.return_value = JobStatus.COMPLETED, result
        return done

    def given_up(self, entry: JobEntry) -> str | None:
        """Why a job that failed before is not tried again; None where it is."""
        failures = self.earlier.failed[entry.plan_hash or ""]
        entry.attempt = failures + 1
        if failures <= self._retries:
            return None
        entry.attempt = failures
        return f"it had failed {failures} times, and hydra.launcher.retries={self._retries}"

    def place(self, job: Job, entry: JobEntry) -> Job:
        """The job in a folder in which no run was begun."""
        if entry.plan_hash is None:  # of another program, or one that will be refused
            return job
        return placed(job, earlier.free_folder(job.folder))

    def announce(self) -> None:
        """On a start that continues: what is there, and what cannot be used; once."""
        if not self.continued:
            return
        self.continued = False
        for folder, why in self.earlier.odd.items():
            if folder.name not in {job.folder for job in self.record.jobs}:
                say(f"mlperf_exp: {folder} is left as it is: {why}\n")
        say(f"mlperf_exp: continuing {self.record.folder}: {self.state()}\n")

    def state(self) -> str:
        """How the sweep stands, in one line."""
        return count_line(self.record.counts(), self.record.remaining_s())

    def save(self, ended: bool = False) -> None:
        """Write ``sweep.json``; a full disk must not end the sweep."""
        with contextlib.suppress(OSError):
            self.record.save(ended)

    def started(self, entry: JobEntry, folder: Path) -> None:
        """A job starts."""
        entry.status, entry.started_at = "running", record.now()
        entry.folder = _relative(folder, self.record.folder)
        self.save()

    def ended(self, entry: JobEntry, row: Row, error: str | None) -> None:
        """A job has ended, or will not be started."""
        entry.seconds = row.seconds
        entry.settle(row.status, error, row.result)
        self.save()


def _relative(folder: Path, sweep_dir: Path) -> str:
    return str(folder.relative_to(sweep_dir)) if folder.is_relative_to(sweep_dir) else str(folder)
