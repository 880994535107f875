"""``repeats=5``: the performance test again and again on one engine start; medians and confidence intervals.

A run has the median of each figure over its repetitions, and the worst count of errors. Its interval is that of the
mean, by Student's t with n - 1 degrees of freedom: mean +- t(0.975) s / sqrt(n) (NIST/SEMATECH e-Handbook of
Statistical Methods, 1.3.5.2). Repetition 1 is the run's own test; the others are in ``repeats/2``, ``repeats/3``, ...
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mlperf_exp.config import Search
from mlperf_exp.messages import Measurement, Plan

CONFIDENCE = 0.95
_WORST = ("errors", "duplicates")  # of these the largest counts


def repeat(plan: Plan, first: Measurement, measure: Callable[[Plan], Measurement]) -> Measurement:
    """``first`` with the other repetitions, and with figures over all of them.

    A repetition that fails fails the run; those before it are kept.
    """
    if plan.config.repeats == 1 or first.failure or "performance" not in plan.modes:
        return first
    config = replace(plan.config, search=Search.off)
    others: list[Measurement] = []
    failure: str | None = None
    interrupted = False
    for number in range(2, plan.config.repeats + 1):
        folder = plan.run_dir / "repeats" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        again = measure(replace(plan, config=config, run_dir=folder, modes=("performance",), compliance=()))
        if again.failure:
            failure = "interrupted" if again.interrupted else f"repetition {number}: {again.failure}"
            interrupted = again.interrupted
            break
        others.append(again)
    every = [first.metrics, *(one.metrics for one in others)]
    metrics = {
        name: (max if name in _WORST else statistics.median)([one[name] for one in every if name in one])
        for name in first.metrics
    }
    seconds = sum(test.wall_s for one in others for test in one.tests)
    return replace(
        first,
        metrics=metrics,
        phases=first.phases | {"repeats_s": seconds},
        repeats=tuple(others),
        repeated=first.metrics,
        failure=failure,
        interrupted=interrupted,
    )


def summary(measurement: Measurement) -> dict[str, Any]:
    """The repetitions as ``result.json`` has them; empty where there was one."""
    if not measurement.repeats:
        return {}
    every = [measurement.repeated, *(one.metrics for one in measurement.repeats)]
    names = [name for name in measurement.repeated if all(name in one for one in every)]
    return {
        "count": len(every),
        "confidence": CONFIDENCE,
        "method": "Student's t, of the mean",
        "metrics": {name: interval([one[name] for one in every]) for name in names},
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Median, mean, and the confidence interval of the mean; no interval for a single value."""
    mean = statistics.fmean(values)
    found: dict[str, Any] = {"values": list(values), "median": statistics.median(values), "mean": mean}
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        found |= {"low": mean - half, "high": mean + half}
    return found


def completed(measurement: Measurement) -> dict[str, float]:
    """The samples of all repetitions together, for figures over the whole wall time."""
    every = [measurement.repeated, *(one.metrics for one in measurement.repeats)] if measurement.repeats else []
    return {"completed": sum(one.get("completed", 0.0) for one in every)} if every else {}
