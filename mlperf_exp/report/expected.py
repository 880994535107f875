"""Published or promised figures beside what was measured, and beside what the hardware can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number, plain
from mlperf_exp.report.view import part
from mlperf_exp.roofline import Bound, bounds

_COLUMNS = ("Figure", "Expected", "Measured", "Bound of the hardware", "What it means", "Source")


def section(result: Mapping[str, Any], _: Path) -> Section | None:
    """The section; None where nothing is expected."""
    found = rows(result)
    if not found:
        return None
    note = (
        "The bound is what the hardware profile's peak figures allow for this model and load, reached by nobody; it "
        "says whether an expected figure can be true. It is no measurement."
    )
    return Section("expected", "Expected beside measured", tables=(Table(_COLUMNS, tuple(found)),), notes=(note,))


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """A row for each expectation: figure, expected, measured, bound, meaning, source."""
    metrics = part(result, "metrics")
    known = bounds(result)
    found = []
    for key, one in part(result, "plan", "config", "expected").items():
        wanted = part({"w": one}, "w")
        metric, unit = str(wanted.get("metric") or key), plain(wanted.get("unit") or "", 40)
        measured = number(metrics.get(metric))
        shown = "not measured" if measured is None else figure(measured, unit) + _beside(measured, wanted)
        bound = known.get(metric)
        found.append(
            (
                plain(metric, 100),
                _range(wanted, unit),
                shown,
                "–" if bound is None else f"{bound.relation} {figure(bound.value, unit)}{_share(measured, bound)}",
                plain(wanted.get("means") or "", 300),
                plain(wanted.get("source") or "", 300),
            )
        )
    return found


def _share(measured: float | None, bound: Bound) -> str:
    """How much of a rate's bound was reached, and what sets it."""
    if measured is None or bound.relation != "≤" or bound.value <= 0:
        return ""
    return f" ({100 * measured / bound.value:.0f} % reached; {bound.by})"


def _range(wanted: Mapping[str, Any], unit: str) -> str:
    low, high = number(wanted.get("low")), number(wanted.get("high"))
    if low is None and high is None:
        return "–"
    if low == high:
        return figure(low, unit)
    if low is None:
        return f"at most {figure(high, unit)}"
    if high is None:
        return f"at least {figure(low, unit)}"
    return f"{figure(low)} to {figure(high, unit)}"


def _beside(measured: float, wanted: Mapping[str, Any]) -> str:
    """How the measured figure stands to the expected one."""
    low, high = number(wanted.get("low")), number(wanted.get("high"))
    if low is not None and measured < low:
        return f" ({measured / low:.2f} times the expected)" if low > 0 else " (below)"
    if high is not None and measured > high:
        return f" ({measured / high:.2f} times the expected)" if high > 0 else " (above)"
    return " (as expected)"
