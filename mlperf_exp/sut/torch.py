"""PyTorch in this process: networks that answer with one forward pass, under dynamic batching.

Queries wait in the order of their arrival. Whenever a slot is free, the thread ``dispatch`` takes as many as make the
best batch, and starts it; the thread ``answer`` waits for batches in turn and completes their queries. Which size is
best follows from the times measured at the start: the one that answers most a second with what waits now. So nothing
waits for a batch to fill up while the device is idle, and batches grow by themselves as the load does
(``backend.max_wait_ms`` holds them back for longer where that is wanted).

Where LoadGen sends one query at a time and waits for it (SingleStream, MultiStream), its own thread does the work:
two threads would only wake each other, at a cost that a small network's latency shows.
"""

from __future__ import annotations

import queue
import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.config import Device, Scenario, TorchBackend
from mlperf_exp.errors import ExperimentError, RunFailed
from mlperf_exp.messages import Answers, Completion, Plan, Queries, Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.forward.program import Program

_STOP_S = 30.0
_ONE_BY_ONE = (Scenario.single_stream, Scenario.multi_stream)


class _Batch(NamedTuple):
    """Queries on their way through the device."""

    slot: Any
    size: int
    rows: NDArray[np.int64]
    samples: NDArray[np.int64]
    sink: Sink


class Torch:
    """See the module. ``model`` is the file or folder of the weights; None with random ones."""

    def __init__(self, plan: Plan, model: Path | None) -> None:
        assert isinstance(plan.config.backend, TorchBackend)
        self._plan, self._backend, self._model = plan, plan.config.backend, model
        self._executor: Any = None
        self._program: Program | None = None
        self._inbox: deque[tuple[Sequence[Query], Sink]] = deque()
        self._rows = array("q")
        self._samples = array("q")
        self._taken = 0  # of both: what was put into batches
        self._sink: Sink | None = None
        self._since = 0.0  # when the first of those that wait came, or was left waiting
        self._wake = threading.Event()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._inline = False  # LoadGen's thread computes
        self._computing = threading.Lock()  # held while it does
        self._sizes: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._rates: NDArray[np.float64] = np.zeros(0)
        self._most = 0  # samples of the largest batch
        self._ending: str | None = "not started"  # why queries are not taken

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        """Build the network, choose kernels and warm up every size; see :class:`SystemUnderTest`."""
        import torch

        from mlperf_exp.sut.forward import build
        from mlperf_exp.sut.forward.executor import Executor
        from mlperf_exp.sut.forward.memory import keep_freed_memory

        began = time.perf_counter()
        backend = self._backend
        cuda = self._plan.config.hw.device is Device.cuda
        if not cuda:
            keep_freed_memory()
        if backend.threads:
            torch.set_num_threads(backend.threads)
        self._program = build.program(self._plan, self._model, samples)
        self._executor = Executor(
            self._program,
            "cuda" if cuda else "cpu",
            slots=self._plan.engine["in_flight"],
            graphs=backend.cuda_graphs,
            warmup=backend.warmup_batches,
        )
        chosen = range(min(len(samples), self._plan.config.scenario.samples or len(samples), 1024))
        self._program.load(chosen)
        built = time.perf_counter()
        try:
            self._executor.start(self._plan.engine["sizes"], chosen)
        except ExperimentError:
            raise
        except Exception as error:
            raise RunFailed(f"the network could not be warmed up: {type(error).__name__}: {_line(error)}") from error
        self._sizes = np.array(list(self._executor.seconds), dtype=np.int64)
        self._rates = 1.0 / np.array(list(self._executor.seconds.values()))
        self._most = int(self._program.most(int(self._sizes[-1])))
        self._inline = self._plan.config.scenario.name in _ONE_BY_ONE and len(self._executor.slots) == 1
        self._ending = None
        if self._inline:
            return {"start_s": built - began, "warmup_s": time.perf_counter() - built}
        for slot in self._executor.slots:
            self._free.put(slot)
        for work in (self._dispatch, self._answer):
            thread = threading.Thread(target=work, name=f"torch{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return {"start_s": built - began, "warmup_s": time.perf_counter() - built}

    def load(self, samples: Sequence[int]) -> None:
        """See :class:`mlperf_exp.sut.base.HoldsSamples`."""
        assert self._program is not None
        self._program.load(samples)
        if self._inline and self._ending is None:  # outside of the timed part: the first batch of a thread is slow
            with self._computing:
                self._executor.warm(np.array(samples[:1], dtype=np.int64))

    def unload(self, samples: Sequence[int]) -> None:
        """They stay until others are loaded: LoadGen asks for the same ones again."""

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Put the queries behind those that wait, or answer them where nothing else can wait."""
        if self._ending is not None:
            sink.complete([Completion(query.row, error=self._ending) for query in queries])
            return
        if self._inline:
            with self._computing:
                self._at_once(queries, sink)
            return
        self._inbox.append((queries, sink))
        if not self._wake.is_set():
            self._wake.set()

    def reset(self, samples: Sequence[Any]) -> None:
        """Nothing is kept between queries; LoadGen loads its samples itself."""

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """See :class:`mlperf_exp.sut.base.Reports`."""
        if self._executor is None:
            return {}, ()
        return {"peak_memory_gib": self._executor.peak_memory_gib()}, tuple(self._executor.warnings)

    def stop(self) -> None:
        """End the threads; what is outstanding completes with the error "stopped"."""
        self._ending = self._ending or "stopped"
        self._wake.set()
        for _ in self._threads:
            self._free.put(None)
        for thread in self._threads:
            thread.join(_STOP_S)
        self._threads.clear()
        idle = self._computing.acquire(timeout=_STOP_S)
        if self._executor is not None:
            self._executor.close()
            self._executor = None
        if idle:
            self._computing.release()

    @property
    def computes(self) -> bool:
        """See :class:`mlperf_exp.sut.base.Computes`; so does a thread that spins for a GPU's answer."""
        return self._inline or self._plan.config.hw.device is Device.cpu

    def _at_once(self, queries: Sequence[Query], sink: Sink) -> None:
        """Compute and answer in the caller's thread."""
        self._inbox.append((queries, sink))
        try:
            self._drain()
            while self._ending is None and (batch := self._next(self._executor.slots[0])) is not None:
                self._executor.launch(batch.slot, batch.size, batch.samples)
                self._answered(batch)
        except Exception as error:
            self._lost(error, sink)
        self._give_up()

    def _give_up(self) -> None:
        """Complete what still waits with the reason why the system ends; nothing waits otherwise."""
        if self._sink is not None and self._taken < len(self._rows):
            rest, self._taken = self._rows[self._taken :], len(self._rows)
            ending = self._ending or "stopped"
            self._sink.complete([Completion(row, error=ending) for row in rest])

    def _dispatch(self) -> None:
        sink = None
        try:
            while self._ending is None:
                slot = self._free.get()
                while slot is not None and self._ending is None:
                    self._wake.wait()
                    self._drain()
                    sink = self._sink
                    batch = self._next(slot)
                    if batch is None:
                        continue
                    self._executor.launch(slot, batch.size, batch.samples)
                    if len(self._executor.slots) > 1:
                        self._running.put(batch)
                    else:  # one at a time: another thread would only have to be woken
                        self._finish(batch)
                    break
        except Exception as error:
            self._lost(error, sink or self._sink)
        self._drain()
        self._give_up()
        self._running.put(None)

    def _answer(self) -> None:
        while (batch := self._running.get()) is not None:
            self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        """Wait for a batch and answer its queries."""
        try:
            self._answered(batch)
        except Exception as error:
            self._lost(error, batch.sink)
        self._free.put(batch.slot)

    def _answered(self, batch: _Batch) -> None:
        data, offsets = self._executor.wait(batch.slot, batch.size, batch.samples)
        batch.sink.complete_many(Answers(batch.rows, data, offsets))

    def _lost(self, error: Exception, sink: Sink | None) -> None:
        """A batch broke: on a GPU nothing after it can be trusted, so the run fails, and the process goes on."""
        reason = f"PyTorch failed: {type(error).__name__}: {_line(error)}"
        self._ending = self._ending or reason
        self._wake.set()
        if sink is not None:
            sink.failed(reason)

    def _drain(self) -> None:
        """Move what came in to those that wait."""
        self._wake.clear()
        if self._taken and self._taken * 2 > len(self._rows):
            del self._rows[: self._taken], self._samples[: self._taken]
            self._taken = 0
        idle = self._taken == len(self._rows)
        while self._inbox:
            queries, self._sink = self._inbox.popleft()
            if not isinstance(queries, Queries):
                self._rows.extend(query.row for query in queries)
                self._samples.extend(query.sample for query in queries)
            elif len(queries) == 1:
                self._rows.append(queries.first)
                self._samples.append(queries.samples[0])
            else:
                self._rows.frombytes(np.arange(queries.first, queries.first + len(queries), dtype=np.int64).tobytes())
                self._samples.extend(queries.samples)
            if idle:
                self._since, idle = time.perf_counter(), False

    def _next(self, slot: Any) -> _Batch | None:
        """The best batch out of what waits; None where there is none, or it shall wait for more."""
        assert self._program is not None
        begin = self._taken
        waiting = len(self._rows) - begin
        if not waiting:
            return None
        samples = np.frombuffer(self._samples[begin : begin + self._most], dtype=np.int64)  # a slice is a copy
        units = np.cumsum(self._program.lengths(samples))
        counts = np.searchsorted(units, self._sizes, side="right")
        answered = np.where(counts > 0, units[np.maximum(counts, 1) - 1], 0)
        best = int(np.argmax(answered * self._rates))
        count, size = int(counts[best]), int(self._sizes[best])
        if not count:
            raise RunFailed(f"sample {samples[0]} is longer than the largest batch")
        if count == waiting and best < len(self._sizes) - 1 and not self._inline and self._waits():
            return None
        self._taken += count
        self._since = time.perf_counter()
        rows = np.frombuffer(self._rows[begin : begin + count], dtype=np.int64)
        assert self._sink is not None
        # The rest can go on at once.
        self._wake.set()
        return _Batch(slot, size, rows, samples[:count], self._sink)

    def _waits(self) -> bool:
        """Whether a batch of all that waits is held back for more; sleeps until something comes, or the time is up."""
        left = self._backend.max_wait_ms / 1e3 - (time.perf_counter() - self._since)
        if left <= 0:
            return False
        self._wake.wait(left)
        self._wake.set()
        return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
