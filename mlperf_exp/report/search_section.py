"""The section on a search for the highest valid rate: what was found, every probe, and latency against rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report import charts
from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number, plain
from mlperf_exp.report.view import items, part


def build(result: Mapping[str, Any], _: Path) -> Section | None:
    """None for a run that did not search."""
    search, rules = part(result, "search"), part(result, "plan", "config", "scenario")
    probes = [dict(probe) for probe in items(search.get("probes")) if isinstance(probe, Mapping)]
    if not probes:
        return None
    confirmed = number(search.get("confirmed_qps"))
    found = (
        "No full run was valid."
        if confirmed is None
        else f"The highest valid rate is {figure(confirmed, 'queries/s')}, confirmed by a run of full length."
    )
    low, high = number(search.get("valid_probe_qps")), number(search.get("invalid_probe_qps"))
    if low is not None and high is not None:
        found += f" The probes put it between {figure(low)} and {figure(high)}."
    key, label = ("ttft", "TTFT") if number(rules.get("ttft_ms")) is not None else ("latency", "Latency")
    points = [
        (rate, ms, probe.get("valid") is True)
        for probe in probes
        if (rate := number(probe.get("target_qps"))) and (ms := number(part(probe, "figures").get(f"{key}_p99_ms")))
    ]
    rows = tuple(_row(probe) for probe in probes)
    columns = ("Test", "Rate (queries/s)", "Done (1/s)", "TTFT p99 (ms)", "TPOT p99 (ms)", "Valid")
    return Section(
        "search",
        "Search for the highest valid rate",
        paragraphs=(found,),
        charts=(charts.knee(points, number(rules.get(f"{key}_ms")), label),) if points else (),
        tables=(Table(columns, rows, right=(1, 2, 3, 4)),),
        notes=() if search.get("finished") else ("The search did not come to its end; started again it goes on.",),
    )


def _row(probe: Mapping[str, Any]) -> tuple[str, ...]:
    figures = part(probe, "figures")
    valid = "✓ valid" if probe.get("valid") is True else f"✗ {plain(probe.get('reason') or 'not valid', 200)}"
    return (
        f"{plain(probe.get('number', '?'), 10)}{' (full)' if probe.get('full') else ''}",
        figure(probe.get("target_qps")),
        figure(probe.get("completed_per_second")),
        figure(figures.get("ttft_p99_ms")),
        figure(figures.get("tpot_p99_ms")),
        valid,
    )
