"""A cluster whose every fault is scripted. Its jobs are real: processes of this machine that run ``_node``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Kind, Log, State
from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


class FakeCluster:
    """``script`` says what ``states`` does, by the attempt's name (``0``, ``0.2``), call after call.

    An item is a :class:`State` (said instead of the truth), an exception (raised), or None (left out of the answer).
    The last one stays. An attempt without a script is told the truth about.
    """

    poll_s = 0.05
    submits_at_once = 1
    told_by_log = removes_later = False

    def __init__(self, settings: RemoteLauncherConf, shared_files: bool = True, place: Path | None = None) -> None:
        self.settings, self.shared_files, self.place = settings, shared_files, place
        self.submits: dict[str, list[Exception | None]] = {}
        self.script: dict[str, list[State | Exception | None]] = {}
        self.held: set[str] = set()  # stays queued
        self.deaf: set[str] = set()  # cannot be cancelled
        self.calls: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.cancelled: set[str] = set()
        self.most = 0
        self.on_submit: Callable[[Attempt], None] = lambda _: None

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        self.calls.append(f"preflight {len(jobs)}")

    def render(self, attempt: Attempt) -> str:
        return json.dumps(self._request(attempt))

    def submit(self, attempt: Attempt) -> str:
        self.calls.append(f"submit {attempt.name}")
        faults = self.submits.get(attempt.name, [])
        fault = faults.pop(0) if faults else None
        if fault is not None:
            raise fault
        self.on_submit(attempt)
        if attempt.name not in self.held:
            self._start(attempt)
        self.most = max(self.most, sum(process.poll() is None for process in self.processes.values()))
        return f"id-{attempt.name}"

    def find(self, attempt: Attempt) -> str | None:
        self.calls.append(f"find {attempt.name}")
        return f"id-{attempt.name}" if attempt.name in self.processes else None

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        found = {}
        for attempt in attempts:
            told = self._told(attempt)
            if isinstance(told, Exception):
                raise told
            if told is not None:
                found[str(attempt.id)] = told
        return found

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        if final:
            log.write("here", self._output(attempt).read_bytes() if self._output(attempt).exists() else b"")

    def fetch(self, attempt: Attempt) -> None:
        self.calls.append(f"fetch {attempt.name}")

    def cancel(self, attempt: Attempt) -> None:
        self.calls.append(f"cancel {attempt.name}")
        if attempt.name not in self.deaf:
            self.cancelled.add(attempt.name)
            if attempt.name in self.processes:
                self.processes[attempt.name].send_signal(signal.SIGTERM)

    def remove(self, attempt: Attempt) -> None:
        self.calls.append(f"remove {attempt.name}")

    def close(self) -> None:
        self.calls.append("close")
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _told(self, attempt: Attempt) -> State | Exception | None:
        script = self.script.get(attempt.name)
        if script:
            return script.pop(0) if len(script) > 1 else script[0]
        if attempt.name in self.cancelled:
            return State(Kind.cancelled)
        process = self.processes.get(attempt.name)
        if process is None:
            return State(Kind.queued, "waits")
        code = process.poll()
        if code is None:
            return State(Kind.running, nodes=("here",))
        return State(Kind.succeeded if code == 0 else Kind.failed, exit_code=code)

    def _node_folder(self, attempt: Attempt) -> Path:
        return attempt.folder if self.place is None else self.place / attempt.uid

    def _output(self, attempt: Attempt) -> Path:
        return attempt.folder.with_name(f"{attempt.folder.name}.out")

    def _request(self, attempt: Attempt) -> dict[str, object]:
        return attempt.request(self.settings, str(self._node_folder(attempt)), sys.executable, None)

    def _start(self, attempt: Attempt) -> None:
        command = [sys.executable, "-m", "hydra_plugins.mlperf_launchers._node", "env:REQUEST"]
        if not self.shared_files:
            command.append("--handback")
        with self._output(attempt).open("wb") as output:
            self.processes[attempt.name] = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, "REQUEST": json.dumps(self._request(attempt))},
                start_new_session=True,
            )
