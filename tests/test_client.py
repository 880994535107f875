"""What the harness adds: the schedule against LoadGen's own, delays put there on purpose, and the words on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp import cli, loadgen
from mlperf_exp.client import Lag, bottleneck, client_metrics, dominant, issue_delays_ms, schedule_ns
from mlperf_exp.measure import read_detail_log
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.simulated import Simulated

WORDS = ["hw=h100", "backend=simulated", "backend.ttft_ms=5", "backend.tpot_ms=0.1", "scenario=server",
         "scenario.target_qps=400", "scenario.min_duration_s=1", "scenario.min_query_count=400"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def run(folder: Path, pause_s: float = 0.0, *words: str) -> tuple[loadgen.Outcome, dict[str, Any]]:
    """A second of the real LoadGen; the system holds LoadGen's thread up for ``pause_s`` at every hundredth query."""
    plan = make_plan(compose("config", [*WORDS, *words]), folder)

    class Slow(Simulated):
        def submit(self, queries: Any, sink: Any) -> None:
            super().submit(queries, sink)
            if pause_s and queries[0].row % 100 == 50:
                time.sleep(pause_s)

    sut = Slow(plan.config.backend, 1)
    sut.start([])
    try:
        outcome = loadgen.run_test(plan, "performance", sut, 64, folder, lambda _: None)
    finally:
        sut.stop()
    return outcome, read_detail_log(folder)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> tuple[loadgen.Outcome, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("prompt"))


@pytest.fixture(scope="module")
def held_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[loadgen.Outcome, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("held_up"), 0.2)


def test_the_schedule_is_loadgens_own_to_the_nanosecond(prompt: tuple[loadgen.Outcome, dict[str, Any]]) -> None:
    logged = prompt[1]
    count = logged["generated_query_count"]
    planned = schedule_ns(logged["effective_schedule_rng_seed"], 400.0, count)
    assert count >= 400
    assert planned[-1] == logged["generated_query_duration"]


def test_delays_explain_the_difference_between_the_two_latencies(
    held_up: tuple[loadgen.Outcome, dict[str, Any]],
) -> None:
    """LoadGen counts from the schedule, the records from sending: the mean difference is the mean delay."""
    outcome, logged = held_up
    records = outcome.records
    sent_ns = (np.array(records.completed_ns) - np.array(records.issued_ns))[: records.issued]
    mean_ms = (logged["result_mean_latency_ns"] - sent_ns.mean()) / 1e6
    assert issue_delays_ms(records, logged).mean() == pytest.approx(mean_ms, abs=2.0, rel=0.1)


def test_a_held_up_client_is_found_and_named(held_up: tuple[loadgen.Outcome, dict[str, Any]]) -> None:
    outcome, logged = held_up
    metrics = client_metrics(outcome.records, logged, outcome.cost)
    assert metrics["issue_delay_max_ms"] >= 190
    assert metrics["issue_delay_p99_ms"] >= 100
    words = bottleneck(metrics | {"ttft_p99_ms": 250.0})
    assert words is not None
    assert f"queries were sent {metrics['issue_delay_p99_ms']:,.1f} ms late" in words
    assert dominant(metrics | {"ttft_p99_ms": 190.0})


def test_processor_time_is_counted(prompt: tuple[loadgen.Outcome, dict[str, Any]]) -> None:
    cost = prompt[0].cost
    assert 0 < cost.thread_cpu_s <= cost.cpu_s * 1.1 + 0.02  # threads are counted in hundredths of a second
    assert cost.cpu_s < cost.wall_s * 2
    assert len(cost.lag_ms) > 100


def test_nothing_is_said_where_the_log_does_not_confirm_the_schedule(
    prompt: tuple[loadgen.Outcome, dict[str, Any]],
) -> None:
    outcome, logged = prompt
    assert len(issue_delays_ms(outcome.records, logged)) == logged["generated_query_count"]
    for other in ({"effective_schedule_rng_seed": 7}, {"effective_target_qps": 401}, {"effective_scenario": "Offline"}):
        assert not len(issue_delays_ms(outcome.records, logged | other))
    assert not len(issue_delays_ms(outcome.records, {}))
    bare = client_metrics(outcome.records, {}, replace(outcome.cost, lag_ms=np.zeros(0)))
    assert set(bare) == {"client_cpu_cores", "client_thread_cores"}


def test_a_blocked_loop_is_late() -> None:
    lag = Lag()

    async def block() -> None:
        lag.watch(asyncio.get_running_loop())
        await asyncio.sleep(0.12)
        time.sleep(0.3)  # noqa: ASYNC251 - the fault
        await asyncio.sleep(0.12)

    asyncio.run(block())
    assert lag.values_ms().max() >= 200
    lag.reset()
    assert not len(lag.values_ms())


def test_of_many_lags_an_even_share_and_the_longest_are_kept_in_the_same_room() -> None:
    lag, count = Lag(), 500_000
    room = lag._late_s.buffer_info()
    for number in range(count):
        lag.note(7.0 if number == 1001 else number / count)
    values = lag.values_ms()
    assert lag._late_s.buffer_info() == room
    assert 2**15 <= len(values) <= 2**16 + 1
    assert values.max() == 7000
    assert np.percentile(values, [1, 50, 99]) == pytest.approx([10, 500, 990], abs=1)


@given(
    st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 2), st.floats(1, 1e4)
)  # fmt: skip
def test_the_harness_is_named_exactly_beyond_its_thresholds(
    delay: float, lag: float, cores: float, ttft: float
) -> None:
    metrics = {"issue_delay_p99_ms": delay, "loop_lag_p99_ms": lag, "client_thread_cores": cores, "ttft_p99_ms": ttft}
    limit = max(5.0, 0.05 * ttft)
    words = bottleneck(metrics)
    assert (words is not None) == (delay > limit or lag > limit or cores > 0.9)
    if words:
        assert ("sent" in words) == (delay > limit)
        assert ("woke" in words) == (lag > limit)
        assert (f"{cores:.2f} cores" in words) == (cores > 0.9)
