"""Repetitions: medians, Student's interval, and a failure among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlperf_exp import repeats
from mlperf_exp.config import Config, Search
from mlperf_exp.messages import Measurement, Plan


def plan_of(count: int, folder: Path) -> Plan:
    config: Any = Config(repeats=count, search=Search.off)
    return Plan(config=config, run_dir=folder, engine={}, modes=("performance", "accuracy"))


def test_the_interval_is_students() -> None:
    """NIST's example 1.3.5.2 in small: the values 1 to 5 have mean 3, s 1.5811 and t(0.975, 4) = 2.7764."""
    found = repeats.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["median"] == found["mean"] == 3.0
    assert found["high"] - 3.0 == pytest.approx(2.7764 * 1.5811 / 5**0.5, rel=1e-3)
    assert 3.0 - found["low"] == pytest.approx(found["high"] - 3.0)
    assert "low" not in repeats.interval([4.0])


def test_figures_are_medians_and_errors_the_worst(tmp_path: Path) -> None:
    rates = iter([90.0, 130.0])
    asked: list[Plan] = []

    def measure(plan: Plan) -> Measurement:
        asked.append(plan)
        rate = next(rates)
        return Measurement({"samples_per_second": rate, "errors": rate == 130.0, "completed": 10.0}, {})

    first = Measurement({"samples_per_second": 100.0, "errors": 0.0, "completed": 10.0}, {"load_s": 1.0})
    found = repeats.repeat(plan_of(3, tmp_path), first, measure)
    assert found.metrics["samples_per_second"] == 100.0
    assert found.metrics["errors"] == 1
    assert [plan.modes for plan in asked] == [("performance",)] * 2
    assert [plan.run_dir.relative_to(tmp_path).as_posix() for plan in asked] == ["repeats/2", "repeats/3"]
    assert repeats.summary(found)["metrics"]["samples_per_second"]["values"] == [100.0, 90.0, 130.0]
    assert repeats.completed(found) == {"completed": 30.0}


def test_a_repetition_that_fails_fails_the_run_and_keeps_the_others(tmp_path: Path) -> None:
    answers = iter([Measurement({"tokens_per_second": 9.0}, {}), Measurement({}, {}, failure="the system was lost")])
    first = Measurement({"tokens_per_second": 10.0}, {})
    found = repeats.repeat(plan_of(5, tmp_path), first, lambda _: next(answers))
    assert found.failure == "repetition 3: the system was lost"
    assert len(found.repeats) == 1


def test_one_measurement_has_nothing_to_repeat(tmp_path: Path) -> None:
    first = Measurement({"tokens_per_second": 10.0}, {})
    never: Any = SimpleNamespace()
    assert repeats.repeat(plan_of(1, tmp_path), first, never) is first
    failed = replace(first, failure="lost")
    assert repeats.repeat(plan_of(5, tmp_path), failed, never) is failed
    assert repeats.summary(first) == {}
