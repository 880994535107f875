"""The choice of rates, against systems whose highest valid rate is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp.search.probe import projected_ms
from mlperf_exp.search.rates import MAX_RUNS, RESOLUTION, Probe, bracket, found, next_probe, next_run


def searched(highest: float, capacity: float, first: float = 1000.0, full: float | None = None) -> list[Probe]:
    """A whole search on a system that is valid up to ``highest``, in full runs up to ``full``."""
    probes: list[Probe] = []
    while (rate := next_probe(probes, first)) is not None:
        probes.append(Probe(len(probes) + 1, rate, rate <= highest, min(rate, capacity)))
    while (rate := next_run(probes)) is not None:
        good = rate <= (full or highest)
        probes.append(Probe(len(probes) + 1, rate, good, min(rate, capacity), full=True))
    return probes


@given(st.floats(0.5, 5000), st.floats(0.55, 1.05))
def test_the_highest_rate_is_found_in_ten_probes_and_one_run(capacity: float, share: float) -> None:
    highest = capacity * share
    probes = searched(highest, capacity)
    rate = found(probes)
    assert rate is not None
    assert highest / RESOLUTION * 0.999 <= rate <= highest
    assert sum(not probe.full for probe in probes) <= 10
    assert sum(probe.full for probe in probes) == 1


@given(st.floats(0.5, 5000), st.floats(0.02, 0.55))
def test_tight_bounds_take_more_probes_and_are_found(capacity: float, share: float) -> None:
    probes = searched(capacity * share, capacity)
    rate = found(probes)
    assert rate is not None
    assert capacity * share / RESOLUTION * 0.999 <= rate <= capacity * share
    assert len(probes) <= 24


@given(st.floats(1, 5000), st.floats(0.9, 1))
def test_full_runs_step_down_until_one_is_valid(capacity: float, share: float) -> None:
    """Short probes flatter: a full run's highest rate is a little lower."""
    full = 0.95 * capacity * share
    rate = found(searched(0.95 * capacity, capacity, full=full))
    assert rate is not None
    assert full / RESOLUTION**2 <= rate <= full


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.booleans()), max_size=30))
def test_a_search_ends_whatever_probes_say(answers: list[tuple[float, bool]]) -> None:
    """Noise: rates valid above rates that are not, again and again."""
    probes: list[Probe] = []
    for _ in range(40):
        rate = next_probe(probes, 1000.0)
        if rate is None:
            break
        share, valid = answers[len(probes) % len(answers)] if answers else (1.0, False)
        probes.append(Probe(len(probes) + 1, rate, valid, share))
        assert np.isfinite(rate)
        assert rate > 0
    else:
        pytest.fail("it never ends")
    low, high = bracket(probes)
    assert low is None or high is None or low < high


def test_a_system_that_keeps_no_bound_at_any_rate_is_given_up() -> None:
    probes = searched(0.0, 100.0)
    assert len(probes) <= 24
    assert found(probes) is None
    assert not any(probe.full for probe in probes)


def test_runs_that_are_never_valid_are_given_up() -> None:
    probes = searched(90.0, 100.0, full=1e-9)
    assert sum(probe.full for probe in probes) == MAX_RUNS
    assert found(probes) is None


def test_an_earlier_search_is_taken_up_where_it_stood() -> None:
    whole = searched(52.0, 55.0)
    for kept in range(len(whole)):
        some = whole[:kept]
        following = next_probe(some, 1000.0) or next_run(some)
        assert following == whole[kept].target_qps


def test_a_growing_queue_is_seen_in_a_short_probe() -> None:
    rng = np.random.default_rng(1)
    issued = np.sort(rng.uniform(0, 60, 3000))
    noise = rng.exponential(30.0, 3000)
    growing = projected_ms(issued, 100 + 8 * issued + noise, 600.0)  # 8 ms a second: 4.9 s after ten minutes
    assert growing == pytest.approx(130 + 8 * 600, rel=0.1)
    assert projected_ms(issued, 100 + noise, 600.0) is None
    ramp = np.where(issued < 10, 10 * issued, 100.0)  # filling up at the start is no trend
    assert projected_ms(issued, ramp + noise, 600.0) is None
