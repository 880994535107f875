"""A probe's word on a full run, against queues that are known: many servers, and LoadGen's own schedule."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from mlperf_exp.benchmarks import SEEDS
from mlperf_exp.client import Floats, schedule_ns
from mlperf_exp.search.probe import MIN_QUERIES
from mlperf_exp.search.rates import Probe, found, next_probe, next_run
from mlperf_exp.search.replay import against, allowed, capacity_qps, deciding_ms, projected, waits_s


def schedule_s(rate: float, count: int) -> Floats:
    return np.asarray(schedule_ns(SEEDS["schedule_rng_seed"], rate, count)[:count] / 1e9)


@dataclass(frozen=True)
class Queue:
    """First come, first served, ``servers`` at a time; a first token ``base_ms`` (spread log-normally) after it."""

    servers: int
    capacity: float
    full_s: float
    bound_ms: float
    spread: float = 0.0
    seed: int = 0

    @cached_property
    def draws(self) -> Floats:
        return np.random.default_rng(self.seed).standard_normal((2, 1 << 16))

    def late_ms(self, arrived_s: Floats) -> Floats:
        mean = self.servers / self.capacity
        free = [0.0] * self.servers
        waited = np.empty(len(arrived_s))
        times = (mean * np.exp(0.2 * self.draws[0] - 0.02)).tolist()
        for row, at in enumerate(arrived_s.tolist()):
            began = max(at, heapq.heappop(free))
            heapq.heappush(free, began + times[row % len(times)])
            waited[row] = began - at
        return 1e3 * waited + 0.1 * self.bound_ms * np.exp(self.spread * np.resize(self.draws[1], len(waited)))

    def full(self, rate: float) -> bool:
        count = max(MIN_QUERIES, math.ceil(rate * self.full_s))
        late = self.late_ms(schedule_s(rate, count))
        return int((late > self.bound_ms).sum()) <= allowed(count)

    def short(self, rate: float, first: bool) -> bool:
        count = MIN_QUERIES if first else max(MIN_QUERIES, math.ceil(0.1 * rate * self.full_s))
        arrived = schedule_s(rate, count)
        full = schedule_s(rate, max(MIN_QUERIES, math.ceil(rate * self.full_s)))
        return against("TTFT", self.bound_ms, arrived, self.late_ms(arrived), full) is None

    def searched(self) -> list[Probe]:
        probes: list[Probe] = []
        highest = max(1000.0, 2 * self.capacity)
        while (rate := next_probe(probes, highest)) is not None:
            valid = self.short(rate, not probes)
            probes.append(Probe(len(probes) + 1, rate, valid, min(rate, self.capacity)))
        while (rate := next_run(probes)) is not None:
            probes.append(Probe(len(probes) + 1, rate, self.full(rate), min(rate, self.capacity), full=True))
        return probes


@pytest.mark.parametrize(
    "queue",
    [
        Queue(25, 500, 20, 300, seed=1),  # probes of a thousand queries: where a line through them is wrong by 5 %
        Queue(25, 500, 20, 600, seed=2),
        Queue(4, 500, 40, 200, seed=3),
        Queue(64, 50, 300, 2000, seed=4),
        Queue(64, 50, 300, 500, seed=5),
        Queue(16, 100, 150, 2000, 0.5, seed=6),
        Queue(8, 20, 600, 2000, 0.3, seed=7),
        Queue(128, 300, 60, 500, 0.5, seed=8),
    ],
)
def test_a_search_comes_within_three_percent_of_a_scan(queue: Queue) -> None:
    probes = queue.searched()
    rate = found(probes)
    assert rate is not None
    scanned = [share * queue.capacity for share in np.arange(0.7, 1.1, 0.01) if queue.full(share * queue.capacity)]
    assert rate >= 0.97 * max(scanned)
    assert sum(not probe.full for probe in probes) <= 10
    assert sum(probe.full for probe in probes) <= 3


def test_waits_are_those_of_one_server() -> None:
    arrived = np.array([0.0, 0.1, 0.2, 5.0])
    assert waits_s(arrived, 4.0).tolist() == pytest.approx([0.0, 0.15, 0.3, 0.0])


@pytest.mark.parametrize("load", [0.97, 1.05, 1.3])
def test_the_servers_rate_is_seen_in_its_latencies(load: float) -> None:
    queue = Queue(25, 500, 0, 1000)
    arrived = schedule_s(500 * load, 3000)
    assert capacity_qps(arrived, queue.late_ms(arrived)) == pytest.approx(500, rel=0.03)


def test_an_overloaded_probe_within_the_bound_is_refused_for_the_full_run() -> None:
    queue = Queue(25, 500, 0, 1000)
    arrived = schedule_s(510, 3000)
    late = queue.late_ms(arrived)
    full = schedule_s(510, 60_000)
    assert np.percentile(late, 99) < 1000
    assert projected(arrived, late, full).late_ms > 1900  # two percent of two minutes, and the schedule's own swing
    said = against("TTFT", 1000, arrived, late, full)
    assert said is not None
    assert said.startswith("the queue would grow: by the ")
    assert against("TTFT", 1000, arrived, late, full, grows=False) is None


def test_a_stretch_of_short_gaps_is_no_overload() -> None:
    """The first thousand gaps of the round's schedule are 4 % too short: latencies rise, and do not rise for ever."""
    queue = Queue(25, 500, 0, 300)
    arrived, full = schedule_s(480, 1000), schedule_s(480, 20_000)
    late = queue.late_ms(arrived)
    assert late[-300:].mean() > 2 * late[:300].mean()
    assert against("TTFT", 300, arrived, late, full) is None


def test_early_stopping_allows_a_smaller_share_of_fewer_queries() -> None:
    assert [allowed(count) for count in (100, 1000, 30_000, 1_000_000)] == [0, 2, 259, 9768]
    late = np.full(1000, 10.0)
    late[:8] = 500.0  # 0.8 %: LoadGen would refuse so short a run, and accept the full one
    assert deciding_ms(late, 1000) == 500.0
    assert deciding_ms(late, 100_000) == 10.0
    late[:9] = 500.0
    said = against("TTFT", 100, np.arange(1000.0), late, np.arange(10_000.0))
    assert said == "TTFT is over 100 ms for 0.90% of the queries, in a full run 0.76% may be"
    assert against("TPOT", 100, np.arange(1000.0), np.full(1000, np.nan), np.arange(9.0)) == "TPOT was not measured"
