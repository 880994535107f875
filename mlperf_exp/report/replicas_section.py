"""The section on replicas: what each did, whether they ended together, and what the router added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number
from mlperf_exp.report.view import part

_MOST_ROWS = 64


def build(result: Mapping[str, Any], run_dir: Path) -> Section | None:
    """None for a run on one replica."""
    metrics = {key: x for key, value in part(result, "metrics").items() if (x := number(value)) is not None}
    count = metrics.get("replicas", 1)
    if count < 2:
        return None
    bullets = [
        f"Tail: from the first replica with nothing left to do until the end it took {figure(metrics['tail_s'], 's')}."
        for _ in range("tail_s" in metrics)
    ]
    if "router_overhead_p99_ms" in metrics:
        bullets.append(
            f"On the way to a replica and back a query spent {figure(metrics.get('router_overhead_p50_ms'), 'ms')} "
            f"(p50), {figure(metrics['router_overhead_p99_ms'], 'ms')} (p99)."
        )
    if "router_wait_p99_ms" in metrics:
        bullets.append(
            f"For a replica with room it waited {figure(metrics['router_wait_p99_ms'], 'ms')} at p99; offline, where "
            "all come at once, that is part of the plan."
        )
    if metrics.get("replicas_lost"):
        bullets.append(f"{metrics['replicas_lost']:g} of them were lost.")
    rows = _rows(run_dir / "replicas" / "replicas.json")
    columns = ("Replica", "Node", "Queries", "Tokens of work", "")
    tables = [Table(columns, tuple(rows[:_MOST_ROWS]), right=(2, 3), title=f"{count:g} replicas")] if rows else []
    return Section("replicas", "Replicas", bullets=tuple(bullets), tables=tuple(tables))


def _rows(path: Path) -> list[tuple[str, ...]]:
    try:
        found = json.loads(path.read_text())["replicas"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        (str(row.get("replica")), str(row.get("node")), f"{row.get('queries', 0):,}", f"{row.get('tokens', 0):,}",
         "lost" if row.get("lost") else "")
        for row in found
        if isinstance(row, dict)
    ]  # fmt: skip
