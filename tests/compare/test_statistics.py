"""The arithmetic behind the comparison, against cases whose answers are known."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import variant, write

from mlperf_exp.compare import baseline, curves, differences, find, svg
from mlperf_exp.compare.groups import Group, group, mean, varying


def groups(folder: Path, *results: dict[str, Any]) -> list[Group]:
    return group(find.in_folders([write(folder, *results)]).runs)


def test_a_mean_and_its_interval_by_student() -> None:
    it = mean([10.0, 12.0, 14.0])
    assert it.value == 12
    assert it.low is not None and it.high is not None
    assert it.high - it.value == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)  # t(0.975, 2) of the tables
    assert mean([5.0]).low is None


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(1000):
        it = mean([float(x) for x in draw.normal(100, 5, 5)])
        assert it.low is not None and it.high is not None
        held += it.low <= 100 <= it.high
    assert 930 <= held <= 970


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=40))
def test_a_front_beats_everything_else(points: list[tuple[float, float]]) -> None:
    best = [points[i] for i in curves.front(points)]
    assert best
    for x, y in points:
        assert any(bx >= x and by <= y for bx, by in best)
    for one in best:
        assert not any(o != one and o[0] >= one[0] and o[1] <= one[1] for o in points)


def test_knees(tmp_path: Path, real: dict[str, Any]) -> None:
    made = [variant(real, qps=qps, seqs=64, noise=0) for qps in (2, 4, 8, 12, 20, 30)]
    (curve,) = curves.load_curves(groups(tmp_path / "a", *made))
    assert curve.loads == (2, 4, 8, 12, 20, 30)
    bounds: dict[str, float | None] = {"ttft_p99_ms": 2000.0, "tpot_p99_ms": 100.0}
    found = curves.knee(curve, bounds)
    assert found is not None
    kept = [load for load, y in zip(curve.loads, curve.ys("ttft_p99_ms"), strict=True) if y is not None and y <= 2000]
    assert (found.load, found.next_load) == (max(kept), 20)
    assert curves.knee(curve, {"ttft_p99_ms": 1.0}) is None
    bent = curves.knee(curve, {})
    assert bent is not None and bent.load == 8, "the last load before the system's 9 queries/s"
    assert curves.load_curves(groups(tmp_path / "b", made[0])) == []


def test_scaling_is_against_perfect_from_the_smallest(tmp_path: Path, real: dict[str, Any]) -> None:
    made = [variant(real, qps=100, seqs=64, gpus=gpus, noise=0) for gpus in (1, 2, 4)]
    (one,) = curves.scaling(groups(tmp_path, *made), "tokens_per_second")
    assert one.counts == (1, 2, 4)
    assert one.efficiency == pytest.approx([1, 2**0.95 / 2, 4**0.95 / 4])


def test_labels_and_differences_name_what_differs(tmp_path: Path, real: dict[str, Any]) -> None:
    made = [
        variant(real, qps=2),
        variant(real, qps=4),
        variant(real, qps=4, vllm="0.25.0", seed=1),
        variant(real, qps=4, gpus=8),
    ]
    found = groups(tmp_path, *made)
    assert [one.label for one in found] == [
        "h100 target_qps=2", "h100 target_qps=4 package vllm=0.24.0", "h100 target_qps=4 package vllm=0.25.0",
        "8xh100 target_qps=4",
    ]  # fmt: skip
    assert "hw.gpus_per_node" not in varying([one.first for one in found]), "it follows from the profile's name"
    told = differences.between(found[1].first, found[2].first)
    assert ("package vllm", "0.24.0", "0.25.0") in told
    assert any(what.startswith("GPU clock") for what, _, _ in told)
    assert {what for what, _, _ in told} <= {"package vllm", "GPU clock, mean (MHz)"}
    embedded = differences.embedded([one.first for one in found], ["a", "b", "c", "d"])
    for key, values, places in embedded["facts"]:
        assert [values[p] if p is not None else None for p in places] == [
            differences.all_facts(one.first).get(key) for one in found
        ]


def test_noise_is_pooled_and_the_false_alarms_are_few(tmp_path: Path, real: dict[str, Any]) -> None:
    """1 % of comparisons may alarm; over 12 equal pairs of four repeats hardly any does."""
    alarms = 0
    for trial in range(12):
        made = [variant(real, qps=30, seqs=64, seed=1000 * trial + s, noise=0.02) for s in range(8)]
        for result in made[:4]:
            result["environment"]["packages"]["vllm"] = "0.23.0"
        place = write(tmp_path / f"new{trial}", *made[4:])
        old = write(tmp_path / f"old{trial}", *made[:4])
        found = find.together([find.as_baseline(find.in_folders([old])), find.in_folders([place])])
        compared = baseline.compare(group(found.runs))
        assert compared is not None
        alarms += any(change.metric == "Tokens per second" and change.worse for change in compared.changes)
    assert alarms <= 1


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20), st.booleans(), st.booleans())
def test_axes_hold_their_values_and_bars_begin_at_zero(values: list[float], zero: bool, may_log: bool) -> None:
    axis = svg.axis("x", values, zero=zero, may_log=may_log)
    assert axis.low <= min(values) and max(values) <= axis.high
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())
    if zero and not axis.log:
        assert axis.low == 0
    drawn = svg.bars([svg.Bar("a", ((value, 0),), f"{value:g}") for value in values], "W", "bars")
    lefts = {float(x) for x in re.findall(r'<rect class="bar s0" x="([\d.]+)"', drawn)}
    assert lefts == {6.0}
