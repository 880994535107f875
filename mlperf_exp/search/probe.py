"""One short test at a rate, and whether it was valid: LoadGen's word, the bounds, and latencies that do not grow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlperf_exp.client import Floats
from mlperf_exp.config import ScenarioRules, Search
from mlperf_exp.judge import BOUNDED
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.search.rates import Probe

MIN_QUERIES = 1000  # LoadGen's early stopping allows three of so many to be late, at the 99th percentile
_SHARE = 0.1  # of the full run's duration
_BATCHES, _RAMP = 10, 2  # batches of a probe's queries in their order; the first two are not looked at
_SIGNIFICANT = 6.0  # standard errors of a trend
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
    reason = _against(plan, measured) or (None if full else _growing(plan, measured.tests[0].log_dir, full_s))
    return Probe(
        number=number,
        target_qps=float(plan.config.scenario.target_qps or 0.0),
        valid=reason is None,
        completed_per_second=metrics.get("samples_per_second", 0.0),
        reason=reason,
        full=full,
        figures={name: metrics[name] for name in _FIGURES if name in metrics},
    )


def _against(plan: Plan, measured: Measurement) -> str | None:
    test, rules = measured.tests[0], plan.config.scenario
    if test.errors or test.completed < test.issued or test.loadgen.get("num_errors", 1):
        return f"{test.issued - test.completed:,} queries did not end well"
    for name, label in BOUNDED.items():
        bound, value = getattr(rules, f"{name}_ms"), measured.metrics.get(f"{name}_p99_ms")
        if bound is not None and (value is None or value > bound):
            shown = "was not measured" if value is None else f"{value:,.0f} ms is over {bound:,.0f} ms"
            return f"{label} p99 {shown}"
    return None if test.loadgen.get("result_validity") == "VALID" else "LoadGen calls it INVALID (early stopping)"


def _growing(plan: Plan, log_dir: Path, full_s: float) -> str | None:
    """The reason against a probe whose queue grows: its latencies keep the bound, a full run's would not."""
    import pyarrow.parquet as pq

    for name in ("ttft", "latency"):
        bound = getattr(plan.config.scenario, f"{name}_ms")
        if bound is None:
            continue
        table = pq.read_table(log_dir / "queries.parquet", columns=["issued_s", f"{name}_ms"])
        late = table[f"{name}_ms"].to_numpy(zero_copy_only=False).astype(np.float64)
        projected = projected_ms(table["issued_s"].to_numpy(), late, full_s)
        if projected is not None and projected > bound:
            return f"{name} grows: by this trend it would be {projected:,.0f} ms at the end of a full run"
    return None


def projected_ms(issued_s: Floats, late_ms: Floats, full_s: float) -> float | None:
    """The mean latency at the end of a run of ``full_s`` by a line through a probe's batches.

    None where the line does not rise significantly: the latencies of neighbours depend on each other, so that means of
    batches are compared, not queries.
    """
    keep = np.isfinite(late_ms)
    if keep.sum() < 10 * _BATCHES:
        return None
    x = np.array([part.mean() for part in np.array_split(issued_s[keep], _BATCHES)])[_RAMP:]
    y = np.array([part.mean() for part in np.array_split(late_ms[keep], _BATCHES)])[_RAMP:]
    spread = x - x.mean()
    slope = float((spread * y).sum() / (spread**2).sum())
    rest = y - y.mean() - slope * spread
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / (spread**2).sum()))
    if slope <= _SIGNIFICANT * error:
        return None
    return float(y.mean() + slope * max(0.0, full_s - x.mean()))
