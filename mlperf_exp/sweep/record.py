"""``sweep.json`` in a sweep's folder: its jobs, where each stands and where its run is; schema 1.

It is written whenever a job starts or ends, aside and moved, for whoever watches, compares or continues the sweep. One
process at a time writes it: it holds a lock on ``sweep.lock``, and so do the processes of its jobs.
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mlperf_exp.credentials import redact
from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.track.tracker import read_object

SWEEP, LOCK, SCHEMA = "sweep.json", "sweep.lock", 1
SEARCH = "optuna.json"  # beside it, of a search: objectives, trials, the best of them
_MEMORY = ("out of memory", "OutOfMemory", "No available memory for the cache", "Cannot allocate memory")
_ENDS = ("finished", "failed", "interrupted", "not started")


@dataclass(slots=True)
class JobEntry:
    """A job as ``sweep.json`` has it. ``folder`` is relative to the sweep's."""

    number: int
    overrides: list[str]
    own: dict[str, str]  # the overrides that not all jobs have
    plan_hash: str | None = None
    status: str = "waiting"  # waiting, running, finished, failed, interrupted, not started
    outcome: str | None = None  # valid, invalid, out of memory; None where the status says it all
    error: str | None = None
    folder: str | None = None
    attempt: int = 1  # over all starts of the sweep
    earlier: bool = False  # finished by an earlier start of the sweep
    started_at: str | None = None
    ended_at: str | None = None
    seconds: float | None = None  # of the job, the start of its process included where it had one of its own
    engine_hash: str | None = None
    engine_started_by: str | None = None
    engine_start_s: float | None = None
    engine_share_s: float | None = None  # that start divided by the jobs which used it

    def settle(self, status: str, error: str | None, result: Mapping[str, Any]) -> None:
        """The job's end, by its own record where there is one."""
        run, verdict = result.get("run") or {}, result.get("verdict") or {}
        self.status, self.error, self.ended_at = status, error and redact(error), now()
        if status == "finished":
            self.outcome = "valid" if verdict.get("valid") is True else "invalid"
        elif any(word.lower() in (error or "").lower() for word in _MEMORY):
            self.outcome = "out of memory"
        self.engine_hash, self.engine_started_by = run.get("engine_hash"), run.get("engine_started_by")
        self.engine_start_s = run.get("engine_start_s")


@dataclass(slots=True)
class SweepRecord:
    """A sweep that this process runs; :meth:`save` writes it down."""

    folder: Path
    command: list[str]
    overrides: list[str]  # as Hydra got them, unswept
    max_parallel: int = 1
    jobs: list[JobEntry] = field(default_factory=list)
    status: str = "running"  # running, finished, failed, interrupted
    started_at: str = field(default_factory=lambda: now())

    @property
    def id(self) -> str:
        """The sweep's name, which is its folder's."""
        return self.folder.name

    def counts(self) -> dict[str, int]:
        """Jobs by how they stand; ``failed`` is without those that were out of memory, ``done`` with the invalid."""
        return counts([asdict(job) for job in self.jobs])

    def remaining_s(self) -> float | None:
        """The time that the jobs left will take, going by those that finished; None while nobody knows."""
        return remaining_s([asdict(job) for job in self.jobs], self.max_parallel)

    def save(self, ended: bool = False) -> None:
        """Write ``sweep.json``.

        Raises:
            OSError: it cannot be written.
        """
        _share_starts(self.jobs)
        value = {
            "schema": SCHEMA,
            "id": self.id,
            "status": self.status,
            "command": self.command,
            "overrides": self.overrides,
            "cwd": str(Path.cwd()),
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "max_parallel": self.max_parallel,
            "started_at": self.started_at,
            "updated_at": now(),
            "ended_at": now() if ended else None,
            "varying": sorted({key for job in self.jobs for key in job.own}),
            "counts": self.counts(),
            "remaining_s": self.remaining_s(),
            "jobs": [asdict(job) for job in self.jobs],
        }
        write_json(self.folder / SWEEP, value)


def read(folder: Path) -> dict[str, Any]:
    """``sweep.json`` of a folder; empty where there is none that can be read, or one of another schema."""
    value = read_object(folder / SWEEP)
    return value if value.get("schema") == SCHEMA and isinstance(value.get("jobs"), list) else {}


def counts(jobs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """See :meth:`SweepRecord.counts`; of the jobs as ``sweep.json`` has them."""
    found = dict.fromkeys(("done", "invalid", "failed", "out of memory", "interrupted", "left"), 0)
    for job in jobs:
        status, outcome = job["status"], job["outcome"]
        if status == "finished":
            found["done"] += 1
            found["invalid"] += outcome == "invalid"
        elif status == "failed":
            found["out of memory" if outcome == "out of memory" else "failed"] += 1
        else:
            found["interrupted" if status == "interrupted" else "left"] += 1
    return found


def remaining_s(jobs: Sequence[Mapping[str, Any]], max_parallel: int = 1) -> float | None:
    """See :meth:`SweepRecord.remaining_s`: the median job, less what runs has run, and a start for each new engine."""
    took = [float(job["seconds"]) for job in jobs if job["status"] == "finished" and job["seconds"]]
    left = sum(job["status"] in ("waiting", "running", "not started", "interrupted") for job in jobs)
    if not left:
        return 0.0
    if not took:
        return None
    running = [job["started_at"] for job in jobs if job["status"] == "running" and job["started_at"]]
    median = statistics.median(took)
    spent = sum(min(median, time.time() - datetime.fromisoformat(at).timestamp()) for at in running)
    return max(0.0, left * median - spent) / max_parallel


def hold(folder: Path, wait_s: float) -> int:
    """The lock on a sweep's folder, as an open file descriptor, for as long as it is open here or in a job's process.

    Where the sweep that held it is dead and its last job is still ending, that is waited for, ``wait_s`` at most.

    Raises:
        UserError: another sweep writes there, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
        raise UserError("hydra.sweep.dir", problem, "Give a folder that can be written to") from error
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            owner = read(folder)
            if time.monotonic() > deadline or not _dead(owner):
                os.close(handle)
                raise UserError(
                    "hydra.sweep.dir",
                    f"another sweep is writing to {folder} (process {owner.get('pid')} on {owner.get('hostname')})",
                    "Wait for its end, or give this one a folder of its own",
                ) from None
        if not told:
            told = True
            print(f"mlperf_exp: waiting for the last job of the killed sweep in {folder} to end", file=sys.stderr)
        time.sleep(0.2)


def _dead(owner: Mapping[str, Any]) -> bool:
    if not owner or owner.get("hostname") != socket.gethostname():
        return False
    try:
        return psutil.Process(int(owner["pid"])).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _share_starts(jobs: Sequence[JobEntry]) -> None:
    """Divide each engine's start by the jobs that used it."""
    users: dict[str, list[JobEntry]] = {}
    for job in jobs:
        if job.engine_started_by and job.engine_start_s is not None:
            users.setdefault(job.engine_started_by, []).append(job)
    for group in users.values():
        for job in group:
            job.engine_share_s = (job.engine_start_s or 0.0) / len(group)


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
