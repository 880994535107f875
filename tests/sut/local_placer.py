"""Replicas as plain processes of this machine: what Ray does for a fleet, in a second and without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.layout import Layout
from mlperf_exp.sut.replicas.placer import Launch, OnEvent, Renew
from mlperf_exp.sut.replicas.replica import Replica

ROOT = Path(__file__).parents[2]


class LocalPlacer:
    """See the module. ``processes`` are the replicas', in their order."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._layout: Layout | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, layout: Layout, address: str | None, timeout_s: float, log: Path) -> None:
        self._layout = layout
        nodes = [f"node{i}" for i in range(len(layout.on_node))]
        self._on_event({"event": "placed", "nodes": nodes, "addresses": ["here"] * len(nodes), "own": "here"})

    def ask(self, request: Launch | Renew) -> None:
        if isinstance(request, Launch):
            for number, token in enumerate(request.tokens):
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.sut.local_placer"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
                self.processes.append(process)
                threading.Thread(target=self._watch, args=(number, process), daemon=True).start()
                self._say(process, (number, request.plan, request.model, request.listens, token, request.samples))
        else:
            for process in self.processes:
                self._say(process, request.samples)

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.left = [process.poll() for process in self.processes]

    def _say(self, process: subprocess.Popen[bytes], value: Any) -> None:
        assert process.stdin is not None
        data = pickle.dumps(value)
        with contextlib.suppress(OSError):
            process.stdin.write(len(data).to_bytes(8, "little") + data)
            process.stdin.flush()

    def _watch(self, number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._on_event({**json.loads(line), "replica": number})
        self._on_event({"event": "died", "replica": number, "error": f"its process ended with {process.wait()}"})


def _read() -> Any:
    head = sys.stdin.buffer.read(8)
    return pickle.loads(sys.stdin.buffer.read(int.from_bytes(head, "little"))) if len(head) == 8 else None


def main() -> None:
    """One replica."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)

    def say(**event: Any) -> None:
        out.write(json.dumps(event).encode() + b"\n")

    number, plan, model, listens, token, samples = _read()
    replica = Replica(number, plan, model, tuple(listens), token)
    if os.environ.get("MLPERF_EXP_TEST_BREAK"):
        from mlperf_exp.sut import simulated

        def broken(*_: Any) -> Any:
            print("loading", flush=True)
            print("CUDA error: the device is broken", flush=True)
            raise RunFailed("the engine did not start")

        simulated.Simulated.start = broken  # type: ignore[method-assign]
    try:
        say(event="started", phases=replica.start(samples))
    except UserError as error:
        say(event="failed", error=str(error), user=[error.key, error.problem, error.remedy])
    except RunFailed as error:
        say(event="failed", error=str(error))
    while (samples := _read()) is not None:
        replica.reset(samples)
        say(event="renewed", phases=None)
    replica.stop()


if __name__ == "__main__":
    main()
