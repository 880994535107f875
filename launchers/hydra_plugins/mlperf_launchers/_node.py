"""What runs on a node: ``python -m hydra_plugins.mlperf_launchers._node REQUEST [options]``.

``REQUEST`` is a file as :meth:`_cluster.Attempt.request` describes, or ``env:NAME``, a variable that holds its text.
The job's command is started as a list of words, never through a shell, with its output passed on and its last lines
kept; how it ended is written to ``status.json``, atomically. The exit status is the job's own; 75 asks for another
attempt.

On several nodes each runs this command. Which of them this is comes from ``--rank-env`` (SLURM_NODEID,
JOB_COMPLETION_INDEX, SKYPILOT_NODE_RANK, ...), the first node's address from ``--master-env``; what processes see
is torchrun's environment: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT.

SIGTERM and SIGINT interrupt the job, which then keeps what it has; after ``grace_s`` it is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from hydra_plugins.mlperf_launchers._files import STATUS
from hydra_plugins.mlperf_launchers._handback import pack

from mlperf_exp.files import write_json

TAIL = 40
_TERM_S = 5.0
_INTERRUPTED, _USER, _CANNOT_START = 130, 2, 127


def main() -> int:
    """Run one job on this node; its exit status."""
    parser = argparse.ArgumentParser(description="Run one job of a sweep on this node.")
    parser.add_argument("request")
    parser.add_argument("--rank-env", metavar="NAME", help="the variable that holds this node's number, from 0")
    parser.add_argument("--master-env", metavar="NAME", help="the variable that holds the first node's address")
    parser.add_argument("--handback", action="store_true", help="print the run's files at the end of the log")
    args = parser.parse_args()
    source: str = args.request
    text = os.environ[source[4:]] if source.startswith("env:") else Path(source).read_text(encoding="utf-8")
    node = Node(
        json.loads(text),
        int(os.environ.get(args.rank_env, "0")) if args.rank_env else 0,
        os.environ.get(args.master_env, "") if args.master_env else "",
    )
    status = node.run()
    if args.handback and node.rank == 0:
        for line in pack(node.folder, node.request["uid"]):
            _print(line)
    return status


class Node:
    """The part of a job that runs on one node."""

    def __init__(self, request: Mapping[str, Any], rank: int, master: str) -> None:
        self.request, self.rank = request, rank
        self.folder = Path(request["folder"])
        self._master = master or "127.0.0.1"
        self._tail: deque[bytes] = deque(maxlen=TAIL)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped_for: str | None = None
        self._stops: list[tuple[float, signal.Signals]] = []
        self._record: dict[str, Any] = {
            "schema": 1,
            "uid": request["uid"],
            "job": request["job"],
            "attempt": request["attempt"],
            "node": socket.gethostname(),
            "rank": rank,
            "state": "running",
            "started_at": _now(),
        }

    def run(self) -> int:
        """Run the job to its end, and leave its status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._stop(signal.Signals(number).name))
        with contextlib.suppress(OSError):  # a full disk; the job itself will say more
            self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        try:
            status, reason = self._run()
        except OSError as error:
            status, reason = _CANNOT_START, f"the command cannot be started: {error}"
        self._record |= {
            "state": "ended",
            "ended_at": _now(),
            "exit_code": status,
            "stopped_for": self._stopped_for,
            "reason": reason,
            "tail": [line.decode(errors="replace") for line in self._tail],
        }
        self._write()
        return status

    def _run(self) -> tuple[int, str]:
        request = self.request
        missing = [name for name in request["secrets"] if name not in os.environ]
        if missing:
            self._say(reason := f"hydra.launcher.secrets: {', '.join(missing)} not set on {socket.gethostname()}")
            return _USER, reason
        if request["run_on"] == "first" and self.rank > 0:
            return 0, "the job runs on the first node"
        limit = None if request["timeout_s"] is None else time.monotonic() + request["timeout_s"]
        count: int = request["processes_per_node"]
        pumps = []
        for local in range(count):
            process = subprocess.Popen(
                request["command"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=request["cwd"],
                env=self._environment(local, count),
                start_new_session=True,
            )
            self._processes.append(process)
            prefix = f"[rank {self.rank * count + local}] ".encode() if count > 1 else b""
            assert process.stdout is not None
            pumps.append(threading.Thread(target=self._pump, args=(process.stdout, prefix), daemon=True))
            pumps[-1].start()
        self._wait(limit)
        for pump in pumps:
            pump.join(2.0)
        return self._outcome()

    def _wait(self, limit: float | None) -> None:
        while any(process.poll() is None for process in self._processes):
            now = time.monotonic()
            if limit is not None and now >= limit:
                self._stop("timeout")
            if any(process.returncode for process in self._processes) and self._stopped_for is None:
                self._stop("another process failed")  # the others would wait for it for ever
            while self._stops and self._stops[0][0] <= now:
                self._signal(self._stops.pop(0)[1])
            time.sleep(0.02)
        self._signal(signal.SIGKILL)  # what a killed process may have left in its group

    def _stop(self, reason: str) -> None:
        if self._stopped_for is None:
            self._stopped_for = reason
            now, grace = time.monotonic(), float(self.request["grace_s"])
            kill = now + grace + min(_TERM_S, grace)
            self._stops = [(now, signal.SIGINT), (now + grace, signal.SIGTERM), (kill, signal.SIGKILL)]

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                if number is signal.SIGKILL:
                    os.killpg(process.pid, number)
                elif process.returncode is None:
                    process.send_signal(number)

    def _outcome(self) -> tuple[int, str]:
        codes = [process.returncode for process in self._processes]
        first = next((code for code in codes if code not in (0, _INTERRUPTED, -signal.SIGINT)), max(codes, default=0))
        if first < 0:
            return 128 - first, f"{signal.strsignal(-first) or 'ended by a signal'} (signal {-first})"
        said = [line.decode(errors="replace").strip() for line in self._tail]
        ours = [line for line in said if "mlperf_exp: " in line]
        reason = ours[-1].partition("mlperf_exp: ")[2] if ours else next((line for line in reversed(said) if line), "")
        return first, reason if first else ""

    def _environment(self, local: int, count: int) -> dict[str, str]:
        request, nodes = self.request, int(self.request["nodes"])
        env = {**os.environ, **request["env"], "MLPERF_EXP_JOB": f"{request['job']}.{request['attempt']}"}
        if request["run_on"] == "each" or nodes > 1:
            world = {
                "RANK": self.rank * count + local,
                "LOCAL_RANK": local,
                "WORLD_SIZE": nodes * count,
                "LOCAL_WORLD_SIZE": count,
                "GROUP_RANK": self.rank,
                "NODE_RANK": self.rank,
                "NNODES": nodes,
                "MASTER_ADDR": self._master,
                # The same on each node without a word between them, and seldom that of a neighbour's job.
                "MASTER_PORT": 20000 + zlib.crc32(request["uid"].encode()) % 10000,
            }
            env |= {name: str(value) for name, value in world.items()}
        return env

    def _pump(self, pipe: IO[bytes], prefix: bytes) -> None:
        for line in pipe:
            self._tail.append(line.rstrip(b"\r\n"))
            _print(prefix + line)

    def _say(self, text: str) -> None:
        self._tail.append(text.encode())
        _print(f"mlperf_exp: {text}\n".encode())

    def _write(self) -> None:
        name = STATUS if self.rank == 0 else f"status.{self.rank}.json"
        try:
            write_json(self.folder / name, self._record)
        except OSError as error:  # the exit status and the log remain
            _print(f"mlperf_exp: {self.folder / name} cannot be written: {error.strerror}\n".encode())


def _print(data: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end the job
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
