"""One short test at a rate, and whether a full run at it would be valid by what it shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlperf_exp.client import Floats, bottleneck, schedule_ns
from mlperf_exp.config import ScenarioRules, Search
from mlperf_exp.judge import BOUNDED
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.search.rates import Probe
from mlperf_exp.search.replay import against

MIN_QUERIES = 1000  # LoadGen's early stopping allows three of so many to be late, at the 99th percentile
_SHARE = 0.1  # of the full run's duration
_OWN = 0.1  # of a bound: where the harness's own delay is more, a probe that failed is tried again
_FIGURES = (
    "samples_per_second", "tokens_per_second", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms",
    "latency_p50_ms", "latency_p99_ms", "queries", "errors", "issue_delay_p99_ms", "loop_lag_p99_ms",
)  # fmt: skip


def first_rate(plan: Plan) -> float:
    """A rate at which all queries of a probe come within a second."""
    return float(max(MIN_QUERIES, 2 * (plan.config.scenario.target_qps or 0)))


def probe_plan(plan: Plan, rate: float, number: int, total_samples: int) -> Plan:
    """The plan of a short probe, into a folder of its own.

    It sends a tenth of the full run's queries, and at least a thousand. LoadGen sends whole copies of the samples that
    it draws from, so that a probe draws from no more samples than it sends.
    """
    rules = plan.config.scenario
    most = total_samples if rules.samples is None else rules.samples
    count = max(MIN_QUERIES, math.ceil(_SHARE * rules.min_duration_s * rate))
    if rate >= first_rate(plan):
        count = MIN_QUERIES  # it only has to show the capacity
    short = replace(
        rules, target_qps=rate, min_duration_s=0.0, min_query_count=count, samples=min(count, most)
    )  # fmt: skip
    folder = plan.run_dir / "probes" / f"{number:02d}"
    return at_rate(replace(plan, run_dir=folder, modes=("performance",), compliance=()), rate, short)


def at_rate(plan: Plan, rate: float, rules: ScenarioRules | None = None) -> Plan:
    """The plan with another rate, and with the search itself switched off."""
    scenario = rules if rules is not None else replace(plan.config.scenario, target_qps=rate)
    return replace(plan, config=replace(plan.config, scenario=scenario, search=Search.off))


def judged(plan: Plan, measured: Measurement, number: int, full: bool, full_s: float) -> Probe:
    """What a test says about its rate. ``full_s`` is how long a full run lasts."""
    metrics = measured.metrics
    reason = _broken(measured) or (_against(plan, measured) if full else _against_full(plan, measured, full_s))
    return Probe(
        number=number,
        target_qps=float(plan.config.scenario.target_qps or 0.0),
        valid=reason is None,
        completed_per_second=metrics.get("samples_per_second", 0.0),
        reason=reason,
        full=full,
        figures={name: metrics[name] for name in _FIGURES if name in metrics},
        doubt=None if reason is None else _doubt(plan, metrics),
    )


def _doubt(plan: Plan, metrics: dict[str, float]) -> str | None:
    """Why a failure may be the harness's: its own delay is a good part of a bound."""
    bounds = [bound for name in ("ttft", "latency") if (bound := getattr(plan.config.scenario, f"{name}_ms"))]
    own = max(metrics.get(f"{name}_p99_ms", 0.0) for name in ("issue_delay", "loop_lag"))
    return bottleneck(metrics) if bounds and own > _OWN * min(bounds) else None


def _broken(measured: Measurement) -> str | None:
    test = measured.tests[0]
    if test.errors or test.completed < test.issued or test.loadgen.get("num_errors", 1):
        return f"{test.issued - test.completed:,} queries did not end well"
    return None


def _against(plan: Plan, measured: Measurement) -> str | None:
    """The reason against a full run: a bound, or LoadGen's word."""
    for name, label in BOUNDED.items():
        bound, value = getattr(plan.config.scenario, f"{name}_ms"), measured.metrics.get(f"{name}_p99_ms")
        if bound is not None and (value is None or value > bound):
            shown = "was not measured" if value is None else f"{value:,.0f} ms is over {bound:,.0f} ms"
            return f"{label} p99 {shown}"
    valid = measured.tests[0].loadgen.get("result_validity") == "VALID"
    return None if valid else "LoadGen calls it INVALID (early stopping)"


def _against_full(plan: Plan, measured: Measurement, full_s: float) -> str | None:
    """The reason why a full run at a probe's rate would not be valid.

    LoadGen's word on the probe is not asked for: of so few queries it allows a smaller share to be late.
    """
    rules, test = plan.config.scenario, measured.tests[0]
    rate = rules.target_qps or 1.0
    count = max(MIN_QUERIES, math.ceil(rate * full_s))
    columns = _columns(test.log_dir)
    seed = int(test.loadgen.get("effective_schedule_rng_seed", 0))
    planned = schedule_ns(seed, rate, max(count, len(columns["issued"]))) / 1e9
    arrived = planned[: len(columns["issued"])]
    delay = columns["issued"] - arrived
    delay_ms = 1e3 * (delay - delay.min())  # of the harness: LoadGen counts from the schedule
    for name, label in BOUNDED.items():
        bound = getattr(rules, f"{name}_ms")
        if bound is None:
            continue
        late = columns[name] + (0.0 if name == "tpot" else delay_ms)
        # a token's time follows from the size of a batch, which does not grow for ever
        reason = against(label, bound, arrived, late, planned[:count], grows=name != "tpot")
        if reason is not None:
            return reason
    return None


def _columns(log_dir: Path) -> dict[str, Floats]:
    """When each query of a test was sent (s), and its latencies from then on (ms)."""
    import pyarrow.parquet as pq

    names = {"issued": "issued_s", "ttft": "ttft_ms", "tpot": "tpot_ms", "latency": "latency_ms"}
    table = pq.read_table(log_dir / "queries.parquet", columns=list(names.values()))
    return {ours: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for ours, name in names.items()}
