"""The sweep's own record (``sweep.json``) and its place in MLflow, kept by the side that submitted its jobs."""

from __future__ import annotations

import contextlib
import json

from hydra_plugins.mlperf_launchers._ledger import Ledger
from hydra_plugins.mlperf_launchers._outcome import Outcome
from hydra_plugins.mlperf_launchers._process import say

from mlperf_exp.config import Tracking
from mlperf_exp.errors import Interrupted, InvalidResult
from mlperf_exp.sweep import record
from mlperf_exp.sweep.identity import varying
from mlperf_exp.sweep.record import JobEntry, SweepRecord
from mlperf_exp.track.tracker import Tracker


class Book:
    """What a sweep of mlperf_exp's runs leaves beside them; nothing for other applications."""

    def __init__(self, ledger: Ledger, max_parallel: int) -> None:
        specs = [entry.spec for entry in ledger.entries]
        jobs = _of_batches_before(ledger)
        jobs += [JobEntry(spec.number, list(spec.overrides), {}, folder=spec.folder.name) for spec in specs]
        for job, pairs in zip(jobs, varying([job.overrides for job in jobs]), strict=True):
            job.own = pairs
        shared = set(jobs[0].overrides).intersection(*(job.overrides for job in jobs)) if jobs else set()
        self._ledger = ledger
        self._record = SweepRecord(ledger.folder, ledger.command, sorted(shared), max_parallel, jobs)
        self._entries = {job.number: job for job in self._record.jobs}
        self._tracker: Tracker | None = None
        facts = specs[0].facts if specs else {}
        self._wanted = "sweep" in facts
        self._timeout_s = float(facts.get("tracking.timeout_s", 0.0))
        self._save()
        if self._wanted and facts.get("tracking.enabled"):
            names = ("enabled", "uri", "experiment", "interval_s", "timeout_s")
            tracking = Tracking(**{name: facts[f"tracking.{name}"] for name in names})
            folder = ledger.folder
            tags = {"kind": "sweep", "overrides": " ".join(sorted(shared)), "launcher": ledger.launcher}
            self._tracker = Tracker.start(folder, tracking, folder.name, f"sweep {folder.name}", tags)

    def ended(self, outcome: Outcome) -> None:
        """A job is over."""
        entry, error = self._entries[outcome.number], outcome.error
        finished = error is None or isinstance(error, InvalidResult)
        status = "finished" if finished else "interrupted" if isinstance(error, Interrupted) else "failed"
        result = {}
        if outcome.folder is None:
            status = "not started"
        else:
            entry.folder, entry.seconds = outcome.folder.name, outcome.seconds
            with contextlib.suppress(OSError, ValueError):
                result = json.loads((outcome.folder / "result.json").read_text(encoding="utf-8"))
        run = result.get("run") or {}
        entry.plan_hash, entry.started_at = run.get("plan_hash"), run.get("started_at")
        entry.attempt = max(1, len(next(e.tries for e in self._ledger.entries if e.spec.number == outcome.number)))
        entry.settle(status, None if finished else str(error), result)
        self._save()

    def close(self, interrupted: bool) -> None:
        """The sweep is over: write so, and wait until MLflow has it."""
        failed = any(job.status == "failed" for job in self._record.jobs)
        self._record.status = "interrupted" if interrupted else "failed" if failed else "finished"
        self._save(ended=True)
        if self._tracker is not None and self._tracker.uri is not None:
            outcome = self._tracker.finish(self._timeout_s)
            say(f"mlperf_exp: {outcome.message}{'; to see it: make ui' if outcome.ok else ''}\n")

    def _save(self, ended: bool = False) -> None:
        if self._wanted:
            with contextlib.suppress(OSError):  # a full disk must not end the sweep
                self._record.save(ended)


def _of_batches_before(ledger: Ledger) -> list[JobEntry]:
    """A search or ``max_batch_size`` submits a sweep in batches, whose jobs count on."""
    first = min((entry.spec.number for entry in ledger.entries), default=0)
    jobs = record.read(ledger.folder).get("jobs", ()) if first else ()
    return [JobEntry(**job) for job in jobs if job["number"] < first]
