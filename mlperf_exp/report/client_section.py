"""The section on the harness itself: how late it sent and woke, what it took, and latencies from both beginnings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.client import bottleneck
from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number
from mlperf_exp.report.view import part

_DELAYS = (("Sent after the schedule", "issue_delay"), ("Client's thread woke late", "loop_lag"))
_LATENCIES = (("TTFT p99", "ttft_p99_ms"), ("Latency p99", "latency_p99_ms"))


def build(result: Mapping[str, Any], _: Path) -> Section | None:
    """None for a run without a performance test."""
    metrics = {key: x for key, value in part(result, "metrics").items() if (x := number(value)) is not None}
    delays = [
        (label, *(figure(metrics.get(f"{name}_{short}_ms"), "ms") for short in ("p50", "p99", "max")))
        for label, name in _DELAYS
        if f"{name}_p99_ms" in metrics
    ]
    both = [
        (label, figure(metrics[key], "ms"), figure(metrics[f"sent_{key}"], "ms"))
        for label, key in _LATENCIES
        if key in metrics and f"sent_{key}" in metrics
    ]
    cores = metrics.get("client_cpu_cores")
    if not delays and cores is None:
        return None
    busiest = metrics.get("client_thread_cores")
    said = "the network's own work among them" if busiest is None else f"its busiest thread {figure(busiest)}"
    sentence = bottleneck(metrics) or "The harness was not the bottleneck."
    tables = [Table(("Delay of the harness", "p50", "p99", "most"), tuple(delays), right=(1, 2, 3))] if delays else []
    if both:
        tables.append(Table(("Latency", "from the schedule", "from sending"), tuple(both), right=(1, 2)))
    note = (
        "MLPerf counts from the scheduled time, so that a query sent late is late. This process took "
        f"{figure(cores)} cores while the load ran, {said}."
    )
    return Section(
        "harness",
        "The harness itself",
        paragraphs=(sentence,),
        tables=tuple(tables),
        notes=(note,),
    )
