"""``jobs.json`` in a sweep's folder: every job and every attempt, with the system's name for it.

It is written before anything is awaited. From it alone another process can list, attach or cancel (``python -m
mlperf_exp.jobs``). One process at a time drives a sweep: it holds a lock on ``jobs.lock``. Whoever wants it to stop
leaves ``jobs.cancel`` there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec

from mlperf_exp.errors import UserError
from mlperf_exp.files import write_atomic

JOBS, LOCK, CANCEL = "jobs.json", "jobs.lock", "jobs.cancel"


@dataclass(slots=True)
class Try:
    """One attempt as it is written down. ``state`` is submitting, queued, running, or how it ended."""

    attempt: Attempt
    state: str = "submitting"
    reason: str = ""
    nodes: tuple[str, ...] = ()
    submitted_at: str | None = None
    ended_at: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in ``jobs.json``."""
        return {
            "attempt": self.attempt.number,
            "uid": self.attempt.uid,
            "id": self.attempt.id,
            "folder": str(self.attempt.folder),
            "state": self.state,
            "reason": self.reason,
            "nodes": list(self.nodes),
            "submitted_at": self.submitted_at,
            "ended_at": self.ended_at,
        }


@dataclass(slots=True)
class Entry:
    """A job and its attempts. ``status``: waiting, submitted, finished, failed, interrupted, not started."""

    spec: JobSpec
    status: str = "waiting"
    tries: list[Try] = field(default_factory=list)
    _spec: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As in ``jobs.json``."""
        if self._spec is None:  # it does not change, and is the most of what is written
            self._spec = self.spec.to_json()
        return self._spec | {"status": self.status, "attempts": [one.to_json() for one in self.tries]}


class Ledger:
    """A sweep's jobs, as this process knows them; ``save`` writes them down."""

    def __init__(self, folder: Path, launcher: str, settings: Mapping[str, Any], entries: list[Entry]) -> None:
        self.folder, self.launcher, self.settings, self.entries = folder.absolute(), launcher, dict(settings), entries
        self.sweep = secrets.token_hex(4)
        self.cwd = str(Path.cwd())
        self.command = ["python", *sys.orig_argv[1:]]
        self._created_at = now()

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """From ``jobs.json``.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        try:
            data = json.loads((folder / JOBS).read_text(encoding="utf-8"))
            entries = [_entry(item) for item in data["jobs"]]
            ledger = cls(folder, data["launcher"], data["settings"], entries)
            ledger.sweep, ledger._created_at = data["sweep"], data["created_at"]
            ledger.cwd, ledger.command = data["cwd"], data["command"]
        except FileNotFoundError:
            raise UserError(
                "FOLDER",
                f"{folder} holds no {JOBS}",
                "Give the folder of a sweep on other machines: outputs/sweeps/...",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "FOLDER", f"{folder / JOBS} cannot be read: {error}", "Give the folder of a sweep"
            ) from error
        return ledger

    def attempt(self, entry: Entry) -> Try:
        """A new attempt at a job."""
        number = len(entry.tries) + 1
        uid = f"mlperf-{self.sweep}-{entry.spec.number}-{number}"
        entry.tries.append(Try(Attempt(entry.spec, number, uid)))
        return entry.tries[-1]

    def save(self, synced: bool = True) -> None:
        """Write ``jobs.json``; ``synced`` as :func:`write_atomic` has it.

        Raises:
            OSError: the folder cannot be written to.
        """
        head = {
            "schema": 1,
            "sweep": self.sweep,
            "launcher": self.launcher,
            "command": self.command,
            "cwd": self.cwd,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "created_at": self._created_at,
            "settings": self.settings,
        }
        # A line a job: written some times for each of them, so that the time of writing counts.
        lines = [f"{_text(key)}: {_text(value)}" for key, value in head.items()]
        jobs = ",\n  ".join(_text(entry.to_json()) for entry in self.entries)
        text = ",\n".join([*lines, f'"jobs": [\n  {jobs}\n]'])
        write_atomic(self.folder / JOBS, f"{{\n{text}\n}}\n", synced)

    @contextlib.contextmanager
    def driven(self) -> Iterator[bool]:
        """Whether this process is now the only one that drives the sweep."""
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def cancel_wanted(self) -> bool:
        """Whether another process asked for the end of the sweep."""
        return (self.folder / CANCEL).exists()

    def want_cancel(self, wanted: bool) -> None:
        """Ask for the end of the sweep, or take that back."""
        if wanted:
            (self.folder / CANCEL).touch()
        else:
            (self.folder / CANCEL).unlink(missing_ok=True)


def _entry(data: Mapping[str, Any]) -> Entry:
    spec = JobSpec.from_json(data)
    tries = [
        Try(
            Attempt(spec, item["attempt"], item["uid"], item["id"]),
            item["state"],
            item["reason"],
            tuple(item["nodes"]),
            item["submitted_at"],
            item["ended_at"],
        )
        for item in data["attempts"]
    ]
    return Entry(spec, data["status"], tries)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def now() -> str:
    """The time as in all of the program's files."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
