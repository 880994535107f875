"""One attempt while it is followed: what its node says, what the system says, and what is to be made of the two."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Attempt, Kind, State
from hydra_plugins.mlperf_launchers._files import STATUS
from hydra_plugins.mlperf_launchers._ledger import Try
from hydra_plugins.mlperf_launchers._log import JobLog
from hydra_plugins.mlperf_launchers._remote_config import Fault, RemoteLauncherConf

from mlperf_exp.errors import ExperimentError, Interrupted, InvalidResult, RunFailed

SETTLE_S = 10.0  # how long the second witness is waited for once the first has spoken
CANCEL_S = 60.0  # how long a cancelled job may take to end
_LATE_S = 15.0  # a node that does not end its job at its time limit is given so much longer


class Stop(Enum):
    """Why the driver ended an attempt."""

    interrupt = "interrupt"
    timeout = "timeout"
    queue = "queue"
    fatal = "fatal"
    lost = "lost"


@dataclass(slots=True)
class Track:
    """An attempt that was submitted. Times are of the monotonic clock."""

    note: Try
    log: JobLog
    shared_files: bool
    told_by_log: bool  # what the log has handed back counts before the system's word
    submitted_s: float = field(default_factory=time.monotonic)
    state: State = field(default_factory=lambda: State(Kind.queued))
    known_s: float = field(default_factory=time.monotonic)  # when the system last knew its state
    running_s: float | None = None
    ended_s: float | None = None  # when one of the two first said so
    stop: Stop | None = None
    stopped_s: float = 0.0
    stopped_in: State | None = None  # what the system said then
    uncancelled: bool = False  # it did not end when it was told to
    problem: str | None = None  # in fetching what it left
    closing: Future[None] | None = None
    _status: dict[str, Any] = field(default_factory=dict)

    @property
    def attempt(self) -> Attempt:
        """The attempt itself."""
        return self.note.attempt

    def status(self) -> Mapping[str, Any]:
        """The node's own word; empty where there is none (yet)."""
        if self._status.get("state") != "ended":
            try:
                read = json.loads((self.attempt.folder / STATUS).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                read = None
            if isinstance(read, dict) and read.get("uid") == self.attempt.uid:
                self._status = read
        return self._status

    def has_news(self) -> bool:
        """Whether there is something to be done without the system's saying anything."""
        return self._handed_back() if self.closing is None else self.closing.done()

    def _handed_back(self) -> bool:
        return self.told_by_log and self.log.complete

    def heard(self, state: State | None, now: float) -> None:
        """What the system says; None: it does not know the attempt, or does not answer."""
        if state is not None and state.kind is not Kind.unknown:
            self.state, self.known_s = state, now
            self.note.nodes = state.nodes or self.note.nodes

    def advance(self, settings: RemoteLauncherConf, now: float) -> bool:
        """Whether it is over; else ``stop`` may have been set, and it is to be cancelled."""
        status = self.status() if self.shared_files or self._handed_back() else {}
        told, ended = status.get("state") == "ended", self.state.kind.ended
        if self.running_s is None and (status or self.state.kind is Kind.running):
            self.running_s = now
        self.note.state = "running" if self.running_s and not ended else self.state.kind.name
        self.note.reason = self.state.reason
        if told or ended:
            self.ended_s = self.ended_s or now
            return self._settled(status, told, ended, now)
        if self.stop is not None:
            self.uncancelled = now - self.stopped_s > CANCEL_S
            return self.uncancelled
        self._limits(settings, now)
        return False

    def _settled(self, status: Mapping[str, Any], told: bool, ended: bool, now: float) -> bool:
        assert self.ended_s is not None
        if (told and (ended or status.get("exit_code") == 0)) or now - self.ended_s > SETTLE_S:
            return True
        # The system says that it ended. Files of a node may take a while to be seen, if there can be any.
        return ended and (not self.shared_files or self.running_s is None)

    def _limits(self, settings: RemoteLauncherConf, now: float) -> None:
        if now - self.known_s > settings.unknown_grace_s:
            self.end(Stop.lost, now)
        elif self.state.fatal:
            self.end(Stop.fatal, now)
        elif self.running_s is None:
            if settings.queue_timeout_s is not None and now - self.submitted_s > settings.queue_timeout_s:
                self.end(Stop.queue, now)
        # The node itself ends a job in time, also when nobody watches; this is for one that does not.
        elif settings.timeout_s is not None and now - self.running_s > settings.timeout_s + settings.grace_s + _LATE_S:
            self.end(Stop.timeout, now)

    def end(self, why: Stop, now: float) -> None:
        """It is to be cancelled; only the first reason counts."""
        if self.stop is None:
            self.stop, self.stopped_s, self.stopped_in = why, now, self.state

    def outcome(self, settings: RemoteLauncherConf) -> tuple[ExperimentError | None, Fault | None]:
        """What came of it: the error, and the fault of the machines after which it may be tried again.

        The node's own word on a run that finished stands, whatever the system says of it.
        """
        status, state = self.status(), self.state
        told = status.get("state") == "ended"
        code: int | None = status.get("exit_code") if told else None
        reason: str = (status.get("reason") or "") if told else ""
        who = f"job {self.attempt.name}"
        if code == 0:
            return None, None
        if code == InvalidResult.exit_status:
            return InvalidResult(reason or f"{who} is not valid"), None
        stopped = self._stopped(who, settings, status)
        if stopped is not None:
            return stopped, Fault.node_lost if self.stop is Stop.lost else None
        because = f": {state.reason}" if state.reason else ""
        if state.kind.fault is not None:
            return RunFailed(f"{who} {_VERBS[state.kind]}{because}"), state.kind.fault
        if state.kind in (Kind.cancelled, Kind.timeout):
            return RunFailed(f"{who} {_VERBS[state.kind]}{because}"), None
        if 75 in (code, state.exit_code):
            return RunFailed(f"{who} asks to be tried again (exit status 75): {reason}"), Fault.exit_75
        if code is not None:
            return RunFailed(f"{who} failed with exit status {code}: {reason or 'it said nothing'}"), None
        return RunFailed(f"{who} {self._silent()}{because}"), None

    def _stopped(self, who: str, settings: RemoteLauncherConf, status: Mapping[str, Any]) -> ExperimentError | None:
        waited = f"{who} waited longer than hydra.launcher.queue_timeout_s={settings.queue_timeout_s} s"
        because = f": {self.stopped_in.reason}" if self.stopped_in and self.stopped_in.reason else ""
        if self.stop is Stop.timeout or status.get("stopped_for") == "timeout":
            return RunFailed(
                f"{who} took longer than hydra.launcher.timeout_s={settings.timeout_s} s and was ended; "
                f"what it had finished is in {self.attempt.folder}"
            )
        makers: dict[Stop | None, Callable[[], ExperimentError]] = {
            Stop.interrupt: lambda: Interrupted(f"{who} was interrupted"),
            Stop.queue: lambda: RunFailed(f"{waited}{because}"),
            Stop.fatal: lambda: RunFailed(f"{who} can never start{because}"),
            Stop.lost: lambda: RunFailed(
                f"{who} is lost: its state was unknown for hydra.launcher.unknown_grace_s={settings.unknown_grace_s} s"
            ),
        }
        return makers[self.stop]() if self.stop in makers else None

    def _silent(self) -> str:
        code = self.state.exit_code
        ended = "succeeded by the system's word" if self.state.kind is Kind.succeeded else "failed"
        status = f" (exit status {code})" if code else ""
        left = f"left no {STATUS} in {self.attempt.folder}; is its disk full?"
        return f"{ended}{status}, but {left}{f' {self.problem}' if self.problem else ''}"


_VERBS = {
    Kind.preempted: "was preempted",
    Kind.lost: "lost its node, or could not be started",
    Kind.cancelled: "was cancelled by somebody else",
    Kind.timeout: "ran into the system's own time limit",
}
