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
_ROOM = 32  # columns in which overrides can be read


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

    def found(self, folder: Path) -> None:
        """An earlier start of the sweep finished the job in ``folder``."""
        self.folder = folder
        with contextlib.suppress(OSError, ValueError):
            self.result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        self.seconds = self.figure("phases", "total_s")

    def settle(self, error: Exception | None) -> None:
        """Name the end. A run that finished and is not valid has finished, whatever it is raised as."""
        finished = error is None or isinstance(error, InvalidResult)
        self.status = "finished" if finished else "interrupted" if isinstance(error, Interrupted) else "failed"

    @property
    def verdict(self) -> Text:
        """What was judged; a run that did not come to its end was not."""
        if self.figure("run", "status") != "finished":
            return Text(_NONE)
        return (
            Text("valid", style="green") if self.figure("verdict", "valid") is True else Text("invalid", style="yellow")
        )

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
    """Print the table on standard output.

    Overrides that all jobs share stand below it, once. On a narrow terminal those of each job stand there too.
    """
    console = console or Console(highlight=False)
    shared = set(rows[0].overrides).intersection(*(row.overrides for row in rows)) if len(rows) > 1 else set()
    own = [describe([text for text in row.overrides if text not in shared]) or _NONE for row in rows]
    unbound = console.options.update(width=10_000)
    if not console.is_terminal:  # a file has no width to fold at
        console.width = max(console.width, console.measure(_table(rows, own, sweep_dir), options=unbound).maximum)
    room = console.width - console.measure(_table(rows, None, sweep_dir), options=unbound).maximum - 2
    beside = room >= min(_ROOM, max(map(len, own)))
    lines = [] if beside else [f"{row.number:>3}    {text}" for row, text in zip(rows, own, strict=True)]
    if shared:
        lines.append(f"All    {describe([text for text in rows[0].overrides if text in shared])}")
    lines.append(f"Sweep  {sweep_dir}")
    with contextlib.suppress(OSError):  # the terminal may be gone
        console.print()
        console.print(_table(rows, own if beside else None, sweep_dir))
        for line in lines:
            console.print(Text(line, style="dim"), soft_wrap=True)


def _table(rows: Sequence[Row], own: Sequence[str] | None, sweep_dir: Path) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("Job", justify="right")
    if own is not None:
        table.add_column("Overrides", overflow="fold")
    for name in ("Status", "Verdict"):
        table.add_column(name)
    for name in ("Samples/s", "Tokens/s", "TTFT p99", "Seconds"):
        table.add_column(name, justify="right")
    table.add_column("Folder", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(
            str(row.number),
            *([] if own is None else [Text(own[i])]),
            Text(row.status, style=_STYLES.get(row.status, "")),
            row.verdict,
            _number(row.figure("metrics", "samples_per_second")),
            _number(row.figure("metrics", "tokens_per_second")),
            _number(row.figure("metrics", "ttft_p99_ms"), " ms"),
            _number(row.seconds),
            Text(_relative(row.folder, sweep_dir)),
        )
    return table


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
