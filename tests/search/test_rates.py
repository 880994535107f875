"""The choice of rates, against systems whose highest valid rate is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_failure_where_the_harness_was_late_is_tried_again() -> None:
    probes = [Probe(1, 1000.0, False, 100.0), Probe(2, 90.0, False, 90.0, doubt="queries were sent 80 ms late at p99")]
    assert next_probe(probes, 1000.0) == 90.0
    again = Probe(3, 90.0, True, 90.0)
    assert bracket([*probes, again]) == (90.0, 1000.0)  # the better one counts
    failed = Probe(3, 90.0, False, 90.0, doubt="late again")
    assert bracket([*probes, failed]) == (None, 90.0)
    assert next_probe([*probes, failed], 1000.0) != 90.0
    run = Probe(4, 90.0, False, 90.0, full=True, doubt="late")
    assert next_run([*probes, again, run]) == 90.0
    assert next_run([*probes, again, run, Probe(5, 90.0, False, 90.0, full=True)]) == pytest.approx(90.0 / RESOLUTION)


@given(st.floats(0.5, 5000), st.floats(0.6, 1), st.integers(1, 6))
def test_one_probe_that_fails_by_the_hosts_fault_is_outgrown(capacity: float, share: float, number: int) -> None:
    """Whichever it is, and though nothing tells: the rate is found, with a few more probes."""
    highest = capacity * share
    probes: list[Probe] = []
    while (rate := next_probe(probes, 1000.0)) is not None:
        valid = rate <= highest and len(probes) + 1 != number
        probes.append(Probe(len(probes) + 1, rate, valid, min(rate, capacity)))
    low, _ = bracket(probes)
    assert low is not None
    assert highest / RESOLUTION / 1.03 * 0.999 <= low <= highest  # a failure near it may support it
    assert len(probes) <= 18
