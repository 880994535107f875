"""What the harness itself adds to a measurement, so that a slow client is not taken for a slow system.

Measured in every performance test: how late queries were sent after LoadGen's schedule (``issue_delay``), how late the
thread that talks to the system woke up (``loop_lag``), and the processor time of this process and its busiest thread.
LoadGen's latencies count from the schedule, so that a delay is inside them; it makes figures worse, never better.
"""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import psutil

from mlperf_exp.records import Records
from mlperf_exp.sut.base import Computes

Floats = np.ndarray[Any, np.dtype[np.float64]]

# The harness is named as a bottleneck where its own delay at p99 is both above a floor that no bound of MLPerf feels
# and above a share of the latency that was measured, or where one of its threads had no time left.
FLOOR_MS = 5.0
SHARE = 0.05
BUSY_CORES = 0.9
DOMINANT = 0.5  # from this share on, a missed bound is the harness's own
_TICK_S = 0.05
_ROOM = 1 << 16


class Lag:
    """How late a thread was, each time that it meant to wake up; kept by a system, read after a test.

    It has room for 65,536 times. Where they are more, every second one is kept from then on, and again where those are
    too many: an even share of all, and the longest.
    """

    def __init__(self) -> None:
        self._late_s = array("d", bytes(8 * _ROOM))
        self._kept, self._passed, self._every, self._worst_s = 0, 0, 1, 0.0

    def note(self, late_s: float) -> None:
        """The thread woke up so many seconds after it was due."""
        self._worst_s = max(self._worst_s, late_s)
        self._passed += 1
        if self._passed < self._every:
            return
        self._passed = 0
        if self._kept == _ROOM:
            self._kept, self._every = _ROOM // 2, 2 * self._every
            self._late_s[: self._kept] = self._late_s[::2]
        self._late_s[self._kept] = late_s
        self._kept += 1

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note the lag of an event loop twenty times a second from now on; call it in the loop's thread."""
        due = loop.time() + _TICK_S

        def tick() -> None:
            self.note(max(0.0, loop.time() - due))
            self.watch(loop)

        loop.call_at(due, tick)

    def reset(self) -> None:
        """Forget what was; a test begins."""
        self._kept, self._passed, self._every, self._worst_s = 0, 0, 1, 0.0

    def values_ms(self) -> Floats:
        """What was noted, in milliseconds, the longest among it."""
        kept = np.array(self._late_s[: self._kept], dtype=np.float64)
        return (kept if self._every == 1 else np.append(kept, self._worst_s)) * 1e3


@runtime_checkable
class Lagging(Protocol):
    """A system whose thread says how late it is."""

    lag: Lag


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor seconds of this process over ``wall_s`` seconds, the busiest thread's among them, and the lags."""

    wall_s: float
    cpu_s: float
    thread: str
    thread_cpu_s: float | None  # None: the network itself runs in this process's threads
    lag_ms: Floats


class Meter:
    """Measures a :class:`Cost` from its making to :meth:`stop`."""

    def __init__(self, sut: object) -> None:
        self._computes = isinstance(sut, Computes) and sut.computes
        self._lag = sut.lag if isinstance(sut, Lagging) else None
        if self._lag is not None:
            self._lag.reset()
        self._threads = _thread_seconds()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, ended: dict[str, float]) -> Cost:
        """``ended`` holds the processor seconds of threads that are no more, by name."""
        spent = dict(ended)
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for number, seconds in _thread_seconds().items():
            name = names.get(number, "another")
            spent[name] = max(spent.get(name, 0.0), seconds - self._threads.get(number, 0.0))
        busiest = max(spent, key=lambda name: spent[name], default="none")
        return Cost(
            wall_s=time.perf_counter() - self._wall,
            cpu_s=time.process_time() - self._cpu,
            thread=busiest,
            thread_cpu_s=None if self._computes else spent.get(busiest, 0.0),
            lag_ms=np.zeros(0) if self._lag is None else self._lag.values_ms(),
        )


def _thread_seconds() -> dict[int, float]:
    try:
        return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}
    except psutil.Error:  # a hardened /proc
        return {}


def schedule_ns(seed: int, qps: float, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """When LoadGen's Server scenario schedules its queries, from the first on, in nanoseconds; ``count`` + 1 values.

    LoadGen draws exponential gaps by the C++ library's ``std::mt19937`` and truncates each to whole nanoseconds
    (``GenerateQueries`` in loadgen.cc); two 32-bit words make one uniform double (``std::generate_canonical``). The
    last value is what it logs as ``generated_query_duration``.
    """
    words = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 1 << 32, 2 * count, dtype=np.uint32).astype(np.float64)
    uniform = (words[0::2] + words[1::2] * 2.0**32) / 2.0**64
    gaps = (-np.log(1.0 - uniform) / qps * 1e9).astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps)])


def issue_delays_ms(records: Records, logged: dict[str, Any]) -> Floats:
    """How long after its scheduled time each query was handed to the system, against the promptest one.

    Empty where nothing is scheduled (all scenarios but Server), or where LoadGen's log does not confirm the schedule.
    """
    count = int(logged.get("generated_query_count", 0))
    if logged.get("effective_scenario") != "Server" or not 0 < count <= records.issued:
        return np.zeros(0)
    seed, qps = int(logged["effective_schedule_rng_seed"]), float(logged["effective_target_qps"])
    planned = schedule_ns(seed, qps, count)
    if abs(int(planned[-1]) - int(logged.get("generated_query_duration", -1))) > 1e-6 * planned[-1]:
        return np.zeros(0)
    late = np.array(records.issued_ns[:count], dtype=np.int64) - planned[:-1]
    return np.asarray((late - late.min()) / 1e6, dtype=np.float64)


def client_metrics(records: Records, logged: dict[str, Any], cost: Cost) -> dict[str, float]:
    """``issue_delay_..._ms``, ``loop_lag_..._ms``, ``client_cpu_cores`` and ``client_thread_cores``.

    The last is missing where the network runs in this process: its threads are then busy with the answers themselves.
    """
    metrics = {}
    for name, values in (("issue_delay", issue_delays_ms(records, logged)), ("loop_lag", cost.lag_ms)):
        if len(values):
            for short, percentile in (("p50", 50), ("p99", 99), ("max", 100)):
                metrics[f"{name}_{short}_ms"] = float(np.percentile(values, percentile))
    if cost.wall_s > 0:
        metrics["client_cpu_cores"] = cost.cpu_s / cost.wall_s
        if cost.thread_cpu_s is not None:
            metrics["client_thread_cores"] = cost.thread_cpu_s / cost.wall_s
    return metrics


def dominant(metrics: dict[str, float]) -> bool:
    """Whether more than half of the first-token latency at p99 is the harness's own delay."""
    measured = metrics.get("ttft_p99_ms", metrics.get("latency_p99_ms", float("inf")))
    own = max(metrics.get("issue_delay_p99_ms", 0.0), metrics.get("loop_lag_p99_ms", 0.0))
    return own > max(FLOOR_MS, DOMINANT * measured)


def bottleneck(metrics: dict[str, float]) -> str | None:
    """One sentence where the harness itself was the bottleneck, None where it was not; see the constants above."""
    measured = metrics.get("ttft_p99_ms", metrics.get("latency_p99_ms", 0.0))
    limit = max(FLOOR_MS, SHARE * measured)
    found = []
    for name, words in (("issue_delay", "queries were sent {} late"), ("loop_lag", "the client's thread woke {} late")):
        value = metrics.get(f"{name}_p99_ms", 0.0)
        if value > limit:
            found.append(words.format(f"{value:,.1f} ms") + " at p99")
    cores = metrics.get("client_thread_cores", 0.0)
    if cores > BUSY_CORES:
        found.append(f"one of its threads took {cores:.2f} cores")
    if not found:
        return None
    return (
        f"The harness itself was a bottleneck: {', and '.join(found)} (up to {limit:,.1f} ms would not matter here). "
        "Free this host of other work, or lower the rate: python -m mlperf_exp.selftest tells what it can do."
    )
