"""What a sweep says at its end: one table over all jobs, from the ``result.json`` in each job's folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers._job import describe
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlperf_exp.errors import Interrupted, InvalidResult

_STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow", "not started": "dim"}
_NONE = "–"


@dataclass(slots=True)
class Row:
    """One job: its number, its overrides, and how it ended."""

    number: int
    overrides: tuple[str, ...]
    status: str = "running"  # finished, failed, interrupted, not started
    seconds: float | None = None  # of the whole process
    folder: Path | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    _before: int | None = None

    @property
    def text(self) -> str:
        """The overrides on one line."""
        return describe(self.overrides)

    def begin(self, folder: Path) -> None:
        """The job starts in ``folder``, which may hold an older result."""
        self.folder, self._before = folder, _changed(folder / "result.json")

    def end(self, seconds: float) -> None:
        """The job's process has ended: take its result, if it wrote one."""
        self.seconds = seconds
        if self.folder is None or _changed(self.folder / "result.json") in (None, self._before):
            return
        with contextlib.suppress(OSError, ValueError):
            read = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
            self.result = read if isinstance(read, dict) else {}

    def settle(self, error: Exception | None) -> None:
        """Name the end. A run that finished and is not valid has finished, whatever it is raised as."""
        finished = error is None or isinstance(error, InvalidResult)
        self.status = "finished" if finished else "interrupted" if isinstance(error, Interrupted) else "failed"

    def figure(self, *keys: str) -> Any:
        """A value of the result; None where it has none."""
        value: Any = self.result
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def show(rows: Sequence[Row], sweep_dir: Path, console: Console | None = None) -> None:
    """Print the table on standard output. Overrides that all jobs share stand below it, once."""
    console = console or Console(highlight=False)
    shared = set(rows[0].overrides).intersection(*(row.overrides for row in rows)) if len(rows) > 1 else set()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, right in (
        ("Job", True),
        ("Overrides", False),
        ("Status", False),
        ("Verdict", False),
        ("Samples/s", True),
        ("Tokens/s", True),
        ("TTFT p99", True),
        ("Seconds", True),
        ("Folder", False),
    ):
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "Overrides")
    for row in rows:
        valid = row.figure("verdict", "valid")
        table.add_row(
            str(row.number),
            Text(describe([text for text in row.overrides if text not in shared]) or _NONE),
            Text(row.status, style=_STYLES.get(row.status, "")),
            {True: Text("valid", style="green"), False: Text("invalid", style="yellow")}.get(valid, Text(_NONE)),
            _number(row.figure("metrics", "samples_per_second")),
            _number(row.figure("metrics", "tokens_per_second")),
            _number(row.figure("metrics", "ttft_p99_ms"), " ms"),
            _number(row.seconds),
            Text(_relative(row.folder, sweep_dir)),
        )
    below = [f"Sweep  {sweep_dir}"]
    if shared:
        below.insert(0, f"All    {describe([text for text in rows[0].overrides if text in shared])}")
    if not console.is_terminal:  # a file has no width to fold at
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    with contextlib.suppress(OSError):  # the terminal may be gone
        console.print()
        console.print(table)
        for line in below:
            console.print(Text(line, style="dim"), soft_wrap=True)


def interruption(rows: Sequence[Row], sweep_dir: Path) -> str:
    """One line that says what an interrupt cost."""
    parts = []
    for status, verb in (
        ("interrupted", "was interrupted"),
        ("not started", "was not started"),
        ("failed", "had failed"),
    ):
        numbers = [str(row.number) for row in rows if row.status == status]
        if numbers:
            parts.append(f"{verb}: job {', '.join(numbers)}")
    finished = sum(row.status == "finished" for row in rows)
    parts.append(f"finished: {finished} of {len(rows)}")
    return f"the sweep was interrupted ({'; '.join(parts)}); what was finished is in {sweep_dir}"


def _number(value: Any, unit: str = "") -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NONE
    return f"{value:,.0f}{unit}" if abs(value) >= 1000 else f"{value:.4g}{unit}"


def _relative(folder: Path | None, sweep_dir: Path) -> str:
    if folder is None:
        return _NONE
    try:
        return str(folder.relative_to(sweep_dir.absolute()))
    except ValueError:
        return str(folder)
