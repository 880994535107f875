"""A system that answers by a seeded latency model, to measure the harness and to test it against faults.

Time to first token and time per output token are log-normal around the configured medians, drawn once for every row
in turn. With ``concurrency`` it answers so many at a time, first come, first served, which gives it a capacity:
``concurrency`` over the mean latency. One thread keeps the future events in a heap and delivers all that are due in
one batch.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from array import array
from collections import deque
from collections.abc import Sequence

import numpy as np

from mlperf_exp.client import Lag
from mlperf_exp.config import SimulatedBackend
from mlperf_exp.messages import Completion, Query, Sample
from mlperf_exp.sut.base import Sink

_DRAWS = 1 << 16
_FIRST_TOKEN, _COMPLETION = 0, 1
_Events = list[tuple[int, int, int, int, Sink]]  # when, in which order, what, row, to whom
_Waiting = deque[tuple[int, int, Sink]]  # since when, row, to whom


class Simulated:
    """See the module; latencies of row ``r`` depend on ``seed`` and ``r`` alone."""

    def __init__(self, config: SimulatedBackend, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ttft_s = config.ttft_ms / 1e3 * np.exp(config.sigma * rng.standard_normal(_DRAWS))
        tpot_s = config.tpot_ms / 1e3 * np.exp(config.sigma * rng.standard_normal(_DRAWS))
        self._ttft_ns: list[int] = (ttft_s * 1e9).astype(np.int64).tolist()
        self._total_ns: list[int] = ((ttft_s + tpot_s * (config.output_tokens - 1)) * 1e9).astype(np.int64).tolist()
        self._error: list[bool] = (rng.random(_DRAWS) < config.error_rate).tolist()
        self._tokens = array("i", range(1, config.output_tokens + 1))
        self._config = config
        self._inbox: deque[tuple[int, Sequence[Query], Sink]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.lag = Lag()
        self._order = itertools.count()
        self._busy = 0  # queries that are being answered

    def latencies_ns(self, row: int) -> tuple[int, int]:
        """The modelled time to first token and latency of a row, in nanoseconds."""
        return self._ttft_ns[row % _DRAWS], self._total_ns[row % _DRAWS]

    def start(self, samples: Sequence[Sample]) -> dict[str, float]:  # noqa: ARG002 - the contract's; nothing is read
        """Start the thread; there is nothing to load."""
        self._thread = threading.Thread(target=self._deliver, name="simulated", daemon=True)
        self._thread.start()
        return {"start_s": 0.0, "warmup_s": 0.0}

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Queue the answers to ``queries``."""
        self._inbox.append((time.perf_counter_ns(), queries, sink))
        if not self._wake.is_set():
            self._wake.set()

    def reset(self, samples: Sequence[Sample]) -> None:
        """Nothing is kept between measurements: latencies go by the row alone."""

    def stop(self) -> None:
        """End the thread; what is outstanding completes with an error."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def _deliver(self) -> None:
        events: _Events = []
        waiting: _Waiting = deque()
        lost = False
        while not self._stopping:
            while self._inbox:
                issued, queries, sink = self._inbox.popleft()
                for query in queries:
                    if lost or query.row == self._config.fail_after:
                        if not lost:
                            sink.failed("the simulated system was told to fail (backend.fail_after)")
                        lost = True
                    elif self._config.hang_after is None or query.row < self._config.hang_after:
                        waiting.append((issued, query.row, sink))
                if waiting:
                    self._take_in(waiting, events)
            self._wake.clear()
            if self._inbox:
                continue
            now = time.perf_counter_ns()
            if not events or events[0][0] > now:
                self._wake.wait((events[0][0] - now) / 1e9 if events else 0.2)
                continue
            self._answer_due(events, waiting, now)
        for _, row, sink in waiting:
            sink.complete([Completion(row, error="stopped")])
        for _, _, kind, row, sink in events:
            if kind == _COMPLETION:
                sink.complete([Completion(row, error="stopped")])

    def _take_in(self, waiting: _Waiting, events: _Events, at: int = 0) -> None:
        """Begin with those that wait, as many as may be answered at a time; not before ``at``."""
        while waiting and (self._config.concurrency is None or self._busy < self._config.concurrency):
            issued, row, sink = waiting.popleft()
            ttft, total = self.latencies_ns(row)
            began = max(issued, at)
            self._busy += 1
            heapq.heappush(events, (began + ttft, next(self._order), _FIRST_TOKEN, row, sink))
            heapq.heappush(events, (began + total, next(self._order), _COMPLETION, row, sink))

    def _answer_due(self, events: _Events, waiting: _Waiting, now: int) -> None:
        self.lag.note((now - events[0][0]) / 1e9)
        first: dict[Sink, list[int]] = {}
        done: dict[Sink, list[Completion]] = {}
        while events and events[0][0] <= now:
            due, _, kind, row, sink = heapq.heappop(events)
            if kind == _FIRST_TOKEN:
                first.setdefault(sink, []).append(row)
                continue
            self._busy -= 1
            if waiting:
                self._take_in(waiting, events, due)
            if self._error[row % _DRAWS]:
                done.setdefault(sink, []).append(Completion(row, error="simulated error (backend.error_rate)"))
            else:
                done.setdefault(sink, []).append(Completion(row, self._tokens))
        for sink, rows in first.items():
            sink.first_token(rows, self._tokens[:1] * len(rows))
        for sink, completions in done.items():
            sink.complete(completions)
