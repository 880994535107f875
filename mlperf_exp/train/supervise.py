"""Starts this node's ranks and watches them: a rank that is lost ends all, with one sentence that names it.

Each node runs one supervisor. Those of several nodes speak through a small key-value store (PyTorch's TCPStore) on the
first node: who failed, and a beat a second, so that a node that vanished is noticed too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from mlperf_exp.errors import Interrupted
from mlperf_exp.sut.reaper import Reaper
from mlperf_exp.train.job import Job
from mlperf_exp.train.nodes import Nodes

BEAT_LOST_S = 20.0
_AFTER_LOSS_S = 10.0  # the others fail by themselves in this time, and rank 0 keeps a checkpoint
_STOP_S = 120.0  # for the step under way and a checkpoint
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Ended:
    """How the ranks ended: ``failure`` is one sentence, None where all came to their end."""

    failure: str | None
    interrupted: bool


def run(job: Job, nodes: Nodes, on_look: Callable[[], None], variables: Mapping[str, str] | None = None) -> Ended:
    """Start the ranks, wait for them; ``on_look`` is called several times a second, ``variables`` are theirs."""
    reaper = Reaper.start()
    ranks: list[_Rank] = []
    control: _Control | None = None
    try:
        control = _Control(nodes) if nodes.count > 1 else None
        per_node = job.world // nodes.count
        ranks = [_Rank(job, nodes, local, per_node, variables or {}) for local in range(per_node)]
        return _watch(ranks, control, on_look)
    finally:
        for rank in ranks:
            rank.close()
        reaper.kill()


def _watch(ranks: list[_Rank], control: _Control | None, on_look: Callable[[], None]) -> Ended:
    failure: str | None = None
    interrupted = False
    leave_at = float("inf")
    while any(rank.running for rank in ranks):
        try:
            time.sleep(_LOOK_S)
            on_look()
            if failure is None:
                failure = _failure(ranks, control)
                if failure is not None:
                    leave_at = time.monotonic() + _AFTER_LOSS_S
                    if control is not None:
                        control.tell(failure)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
            leave_at = min(leave_at, time.monotonic() + _STOP_S)
            for rank in ranks:
                rank.signal(signal.SIGTERM)
        if time.monotonic() > leave_at:
            for rank in ranks:
                rank.signal(signal.SIGKILL)
            leave_at = float("inf")
    on_look()
    if failure is None:
        failure = next((text for rank in ranks if (text := rank.failure())), None)
        if failure is not None and control is not None:
            control.tell(failure)
    if control is not None:
        control.close()
    return Ended(failure, interrupted)


def _failure(ranks: list[_Rank], control: _Control | None) -> str | None:
    own = next((text for rank in ranks if not rank.running and (text := rank.failure())), None) or _stall(ranks)
    if own is None and control is not None:
        return control.failure()
    return own


def _stall(ranks: list[_Rank]) -> str | None:
    """In one sentence, that a rank gave no sign of life for too long; one that is stopped holds up the others."""
    silent = [rank for rank in ranks if rank.running and rank.silent_s > rank.stall_timeout_s]
    if not silent:
        return None
    first = min(silent, key=lambda rank: not rank.stopped)
    how = " (it is stopped)" if first.stopped else ""
    return f"{first.name} made no step in {first.stall_timeout_s:g} s (scenario.stall_timeout_s){how}"


class _Rank:
    """One process; its output goes to ``train/rank-N.log``."""

    def __init__(self, job: Job, nodes: Nodes, local: int, per_node: int, variables: Mapping[str, str]) -> None:
        self.number = nodes.rank * per_node + local
        self._folder = job.folder
        self._host = socket.gethostname()
        self._log = job.folder / f"rank-{self.number}.log"
        self._error = job.folder / f"rank-{self.number}.error"
        self._error.unlink(missing_ok=True)
        self.stall_timeout_s = job.stall_timeout_s
        self.name = f"rank {self.number} on {self._host}"
        self._beat = job.beat(self.number)
        self._beat.touch()
        self._beaten = (0, time.monotonic())  # the beat's last time, and when it was seen: the system's clock may jump
        environment = (
            os.environ
            | dict(variables)
            | {
                "RANK": str(self.number),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(job.world),
                "LOCAL_WORLD_SIZE": str(per_node),
                "GROUP_RANK": str(nodes.rank),
                "MASTER_ADDR": nodes.address,
                "MASTER_PORT": str(nodes.port),
            }
        )
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlperf_exp.train.worker", str(job.folder / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    @property
    def silent_s(self) -> float:
        """Seconds since its last sign of life, or its start."""
        now = time.monotonic()
        with contextlib.suppress(OSError):
            if (last := self._beat.stat().st_mtime_ns) != self._beaten[0]:
                self._beaten = (last, now)
        return now - self._beaten[1]

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it, as by Ctrl-Z or a debugger."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def failure(self) -> str | None:
        """Why it ended before its end, in one sentence; None where it did not."""
        status = self._process.poll()
        if status in (None, 0):
            return None
        try:
            return f"{self.name}: {self._error.read_text().strip()}"
        except OSError:
            pass
        if status == -signal.SIGKILL:  # its last words were about something else
            return f"{self.name} was killed by SIGKILL (see {self._log})"
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}{_last_words(self._log)}"

    def close(self) -> None:
        """Kill what still runs."""
        if self.running:
            self.signal(signal.SIGKILL)
        self._process.wait()


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
        if lines:
            return f"; its last words: {lines[-1][:300]} (see {log})"
    return f" (see {log})"


class _Control:
    """What the supervisors of several nodes tell each other.

    A thread of its own speaks with the store: where a cable is cut, a request waits for an answer without an end.
    """

    def __init__(self, nodes: Nodes) -> None:
        from torch.distributed import TCPStore

        self._nodes = nodes
        self._store: Any = TCPStore(
            nodes.address, nodes.port + 1, None, nodes.rank == 0, timedelta(seconds=300), wait_for_workers=False
        )
        self._store.set_timeout(timedelta(seconds=10))
        self._store.set(f"host/{nodes.rank}", socket.gethostname())
        self._beats = {node: (0, time.monotonic()) for node in range(nodes.count)}
        self._answered_at = time.monotonic()
        self._found: str | None = None
        self._own: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="nodes", daemon=True)
        self._thread.start()

    def tell(self, failure: str) -> None:
        """Let the other nodes end too."""
        self._own = failure

    def failure(self) -> str | None:
        """What happened elsewhere: a failure that was told, a node without a beat, or a first node without a word."""
        if self._found is None and time.monotonic() - self._answered_at > BEAT_LOST_S:
            return f"node 0 ({self._nodes.address}) has not been heard of for {BEAT_LOST_S:g} s"
        return self._found

    def close(self) -> None:
        """The node is done; the first one, which holds the store, stays until all are, or for a while."""
        self._closing.set()
        self._thread.join(BEAT_LOST_S + 10.0)

    def _speak(self) -> None:
        try:
            while not self._closing.wait(1.0):
                self._say()
                self._found = self._found or self._look()
                self._answered_at = time.monotonic()
            self._say()
            self._store.set(f"done/{self._nodes.rank}", "1")
            if self._nodes.rank == 0:
                self._store.wait([f"done/{node}" for node in range(self._nodes.count)], timedelta(seconds=BEAT_LOST_S))
        except Exception as error:  # the first node holds the store: without it there is no run
            lost = f"node 0 ({self._nodes.address}) is lost: {' '.join(str(error).split())[:200]}"
            self._found = self._found or lost

    def _say(self) -> None:
        if self._own is not None:
            self._store.compare_set("failed", "", self._own)
            self._own = None

    def _look(self) -> str | None:
        now = time.monotonic()
        self._store.add(f"beat/{self._nodes.rank}", 1)
        if self._store.check(["failed"]):
            return self._store.get("failed").decode()  # type: ignore[no-any-return]
        for node, (count, since) in list(self._beats.items()):
            beat = self._store.add(f"beat/{node}", 0)
            done = self._store.check([f"done/{node}"])
            if beat != count or done:
                self._beats[node] = (beat, now)
            elif now - since > BEAT_LOST_S:
                return f"node {node}{self._host(node)} has not been heard of for {BEAT_LOST_S:g} s"
        return None

    def _host(self, node: int) -> str:
        key = f"host/{node}"
        return f" ({self._store.get(key).decode()})" if self._store.check([key]) else ""
