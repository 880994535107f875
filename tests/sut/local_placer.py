"""Replicas as plain processes of this machine: what Ray does for a fleet, in a moment and without Ray."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.layout import Layout
from mlperf_exp.sut.replicas.placer import Launch, OnEvent, Renew
from mlperf_exp.sut.replicas.replica import Replica

_CONTEXT = multiprocessing.get_context("forkserver")  # a process of which the replicas are copies: quick, no threads
_CONTEXT.set_forkserver_preload(["mlperf_exp.sut.replicas.replica", "mlperf_exp.sut.simulated", "mlperf_exp.sut"])


class LocalPlacer:
    """See the module. ``processes`` are the replicas', in their order; ``broken`` ones cannot start their engine."""

    broken = False

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.processes: list[BaseProcess] = []
        self._pipes: list[Connection[Any, Any]] = []

    def start(self, layout: Layout, address: str | None, timeout_s: float, log: Path) -> None:
        nodes = [f"node{i}" for i in range(len(layout.on_node))]
        self._on_event({"event": "placed", "nodes": nodes, "addresses": ["here"] * len(nodes), "own": "here"})

    def ask(self, request: Launch | Renew) -> None:
        if isinstance(request, Renew):
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.send(request.samples)
            return
        for number, token in enumerate(request.tokens):
            ours, theirs = _CONTEXT.Pipe()
            words = (number, request.plan, request.model, request.listens, token, request.samples)
            process = _CONTEXT.Process(target=replica, args=(theirs, self.broken, *words), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(ours)
            threading.Thread(target=self._watch, args=(number, process, ours), daemon=True).start()

    def stop(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(60)
            process.kill()
            process.join()

    def _watch(self, number: int, process: BaseProcess, pipe: Connection[Any, Any]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._on_event({**pipe.recv(), "replica": number})
        self._on_event({"event": "died", "replica": number, "error": "its process ended"})


def replica(pipe: Connection[Any, Any], broken: bool, *words: Any) -> None:
    """One replica's process."""
    *place, samples = words
    made = Replica(*place)
    if broken:
        from mlperf_exp.sut import simulated

        simulated.Simulated.start = _break  # type: ignore[method-assign]
    try:
        pipe.send({"event": "started", "phases": made.start(samples)})
    except UserError as error:
        pipe.send({"event": "failed", "error": str(error), "user": [error.key, error.problem, error.remedy]})
    except RunFailed as error:
        pipe.send({"event": "failed", "error": str(error)})
    with contextlib.suppress(EOFError, OSError):
        while (samples := pipe.recv()) is not None:
            made.reset(samples)
            pipe.send({"event": "renewed", "phases": None})
    made.stop()


def _break(*_: Any) -> Any:
    print("loading", flush=True)
    print("CUDA error: the device is broken", flush=True)
    raise RunFailed("the engine did not start")
