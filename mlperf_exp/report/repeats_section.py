"""The section on repetitions: median, mean and confidence interval of the figures that a decision goes by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number
from mlperf_exp.report.view import part

_SHOWN = {
    "samples_per_second": "Samples per second",
    "tokens_per_second": "Tokens per second",
    "ttft_p50_ms": "TTFT p50 (ms)",
    "ttft_p99_ms": "TTFT p99 (ms)",
    "tpot_p99_ms": "TPOT p99 (ms)",
    "latency_p99_ms": "Latency p99 (ms)",
}


def build(result: Mapping[str, Any], _: Path) -> Section | None:
    """None for a run that measured once."""
    repeats = part(result, "repeats")
    count, share = number(repeats.get("count")), number(repeats.get("confidence"))
    if count is None or share is None:
        return None
    rows = []
    for name, label in _SHOWN.items():
        found = part(repeats, "metrics", name)
        if number(found.get("median")) is not None:
            rows.append((label, *(figure(number(found.get(key))) for key in ("median", "mean", "low", "high"))))
    said = (
        f"The run's figures are medians over {count:.0f} performance tests on one engine start. Low and high bound "
        f"the {100 * share:.0f} % confidence interval of the mean ({repeats.get('method')})."
    )
    return Section(
        "repeats",
        f"{count:.0f} repetitions",
        paragraphs=(said,),
        tables=(Table(("Figure", "Median", "Mean", "Low", "High"), tuple(rows), right=(1, 2, 3, 4)),),
    )
