"""What the doctor says: a table for people, ``doctor.json`` for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlperf_exp.config import Hardware
from mlperf_exp.doctor.check import Check, Status

_STYLES = {Status.passed: "green", Status.warn: "yellow", Status.fail: "red"}


def as_json(hw: Hardware, checks: Sequence[Check]) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "schema": 1,
        "hw": hw.name,
        "nodes": sorted({check.node for check in checks if check.node}),
        "passed": not failed(checks),
        "checks": [asdict(check) | {"status": check.status.value} for check in checks],
    }


def failed(checks: Sequence[Check]) -> list[Check]:
    """Those that make the exit status 1."""
    return [check for check in checks if check.status is Status.fail]


def show(hw: Hardware, checks: Sequence[Check]) -> None:
    """Print the table on standard output; a remedy stands below what it mends."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, file=sys.stdout)
    if not console.is_terminal:
        console.width = 120
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Node", "Check", "", "Found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="dim")
        table.add_row(check.node, check.name, Text(check.status.value, style=_STYLES[check.status]), found)
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    with contextlib.suppress(OSError):  # the terminal may be gone
        console.print(table)
        told = ", ".join(f"{count} {status.value}" for status, count in counts.items())
        console.print(Text(f"\n{hw.name}: {told}", style="bold"))
