"""The process that speaks to Ray (:mod:`mlperf_exp.sut.replicas.placement`), as seen from this one.

Ray ends a process whose cluster is gone, so it is kept out of LoadGen's. Requests go to that process pickled over its
standard input, its answers come back as lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlperf_exp.layout import Layout
from mlperf_exp.messages import Plan
from mlperf_exp.sut.reaper import Reaper, remove

_STOP_S = 25.0
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Of Ray's own processes; its limits of 30 s and less are not kept on a busy machine.
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "0",  # Ray's own choice is 15: every other process would come before an engine
    "SPT_NOENV": "1",  # else the titles that Ray gives its workers wipe out the reaper's mark
}
# Without this (the name is older than the use) Ray reads a loopback address as the host's own one on the network, where
# a Ray on the loopback interface does not listen.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True, slots=True)
class Place:
    """Find room: on the cluster at ``address``, or with None on a Ray of this run's own in the folder ``temp``."""

    layout: Layout
    address: str | None
    timeout_s: float
    log: Path
    temp: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the replicas, which connect to ``listens`` with a token each."""

    plan: Plan
    model: Path | None
    samples: Any
    listens: tuple[str, int]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renew:
    """Reset the replicas, with these samples."""

    samples: Any


OnEvent = Callable[[dict[str, Any]], None]


class Places(Protocol):
    """What puts replicas in their places and tells what becomes of them."""

    def start(self, layout: Layout, address: str | None, timeout_s: float, log: Path) -> None:
        """Find room; the event ``placed`` says where."""

    def ask(self, request: Launch | Renew) -> None:
        """Start or reset the replicas; events tell of each."""

    def stop(self) -> None:
        """End them; works twice."""


class Placer:
    """The process; ``on_event`` is called on a thread of its own with each line that it says, and once with its end."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: Reaper | None = None
        self._reader: threading.Thread | None = None
        self._temp: str | None = None

    def start(self, layout: Layout, address: str | None, timeout_s: float, log: Path) -> None:
        """Start the process and ask for room."""
        if address is None:
            self._temp = tempfile.mkdtemp(prefix="mx-", dir="/tmp")  # sockets' paths must be short
        self._reaper = Reaper.start(self._temp)  # marks this process's environment, which the next lines copy
        env = os.environ | _RAY
        self._reaper.seal()
        if self._temp is not None:
            # Of this run's own: nobody else can ask anything of it, and what it leaves goes with its folder.
            token = secrets.token_hex(32)
            env |= _LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "TMPDIR": self._temp}
            env.pop("RAY_ADDRESS", None)
        elif address is not None and _on_loopback(address):
            env |= _LOOPBACK
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlperf_exp.sut.replicas.placement"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the framework, which then ends all in order
        )
        self._reader = threading.Thread(target=self._read, name="placer", daemon=True)
        self._reader.start()
        self.ask(Place(layout, address, timeout_s, log, self._temp or ""))

    def ask(self, request: Place | Launch | Renew) -> None:
        """Send a request; a process that has ended is told of by its last event."""
        assert self._process is not None
        assert self._process.stdin is not None
        data = pickle.dumps(request, protocol=5)
        try:
            self._process.stdin.write(struct.pack("<Q", len(data)))
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            return

    def stop(self) -> None:
        """End the replicas, the process and, where it is the run's own, Ray; works twice."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
            self._process = None
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper = None
        if self._temp is not None:
            remove(self._temp)
            self._temp = None

    def _read(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self._on_event(event)
        self._on_event({"event": "ended", "status": process.wait()})


def _on_loopback(address: str) -> bool:
    """Whether something listens at this address, and it is one of the loopback interface."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
