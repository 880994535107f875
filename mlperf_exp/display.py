"""Progress on stderr: two live lines on a terminal, a plain line about every ten seconds elsewhere.

It costs nothing that could be measured: at most four refreshes a second, one a second of its own. A terminal that goes
away, or a pipe that nobody reads, ends the display and never the run.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live as LiveLines
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlperf_exp.records import State

_LIVE_PERIOD_S = 0.25
_TICK_S = 1.0  # the clock goes on while nothing is reported, as in an engine's start


@dataclass(slots=True)
class _Phase:
    name: str
    expected: int | None  # queries, or samples to score
    expected_s: float | None
    started_s: float
    done: int = 0
    unit: str = "queries"
    live: State | None = None
    machine: Mapping[str, float] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def left_s(self) -> float | None:
        """A test lasts for its time and for its queries: the later one counts. None: unknown, or overdue."""
        known = [] if self.expected_s is None else [self.expected_s - self.elapsed_s]
        if self.expected and self.done:
            known.append((self.expected - self.done) * self.elapsed_s / self.done)
        return max(known) if known and max(known) > 0 else None

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None: unknown."""
        left = self.left_s
        return None if left is None else self.elapsed_s / max(self.elapsed_s + left, 1e-9)

    def count(self) -> str:
        if self.live is None and not self.done and self.unit == "queries":
            return ""
        of = f"/{self.expected:,}" if self.expected and self.done <= self.expected else ""
        return f"{self.done:,}{of} {self.unit}"

    def clock(self) -> str:
        left = self.left_s
        return seconds(self.elapsed_s) + ("" if left is None else f", {seconds(left)} left")

    def rates(self) -> str:
        return "" if self.live is None else " · ".join([*self.live.words(), *machine_words(self.machine)])


class Display:
    """What the run is doing; a context manager. All methods may be called from any thread and never raise.

    Args:
        enabled: False shows nothing at all.
        stream: where to write; stderr unless told.
        plain_period_s: the time between two plain lines where there is no terminal.
    """

    def __init__(self, enabled: bool, stream: TextIO | None = None, plain_period_s: float = 10.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._period_s = plain_period_s
        self._lock = threading.RLock()
        self._phase: _Phase | None = None
        self._shown_s = -math.inf
        self._closed = threading.Event()
        self._lines: LiveLines | None = None
        if enabled and _is_terminal(self._stream):
            self._start_lines()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def phase(
        self, name: str, expected: int | None = None, expected_s: float | None = None, unit: str = "queries"
    ) -> None:
        """A phase begins: how many queries (or ``unit``), and seconds at least, it will take, where known."""
        with self._lock:
            self._end_phase()
            self._phase = _Phase(name, expected, expected_s, time.monotonic(), unit=unit)
            if self._lines is None:
                self._say(f"[{name}]" + (f" {expected:,} {unit} expected" if expected else ""))
            else:
                self._refresh(always=True)

    def update(self, live: State, machine: Mapping[str, float] | None = None) -> None:
        """The state of the test that runs now, and of the machine (``telemetry.tail.machine``)."""
        with self._lock:
            if self._phase is not None:
                self._phase.live, self._phase.done, self._phase.machine = live, live.completed, machine or {}
                self._refresh()

    def score(self, done: int, total: int) -> None:
        """How many samples are scored; begins a phase ``score`` where another one was shown."""
        with self._lock:
            if self._phase is None or self._phase.name != "score":
                self.phase("score")
            if self._phase is not None:
                self._phase.done, self._phase.expected, self._phase.unit = done, total, "samples"
                self._refresh()

    def close(self) -> None:
        """End the last phase and leave the terminal as it was; more than once does no harm."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._end_phase()
            self._phase = None
            if self._lines is not None:
                try:
                    self._lines.stop()
                except (OSError, ValueError):
                    self._give_up()
            self._enabled = False

    def _start_lines(self) -> None:
        console = Console(file=self._stream, highlight=False)
        if console.is_dumb_terminal:
            return
        # What others print goes above the lines; standard output only where it is a terminal too: a pipe would lose it.
        self._lines = LiveLines(
            console=console, auto_refresh=False, transient=True, redirect_stdout=_is_terminal(sys.stdout)
        )
        self._period_s = _LIVE_PERIOD_S
        try:
            self._lines.start()
        except (OSError, ValueError):
            self._give_up()
            return
        threading.Thread(target=self._tick, name="display", daemon=True).start()

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_S):
            with self._lock:
                if not self._closed.is_set():
                    self._refresh()

    def _refresh(self, always: bool = False) -> None:
        phase, now = self._phase, time.monotonic()
        if not self._enabled or phase is None:
            return
        if not always and now - self._shown_s < self._period_s:
            return
        self._shown_s = now
        if self._lines is None:
            self._say(_plain(phase))
            return
        try:
            self._lines.update(_render(phase), refresh=True)
        except (OSError, ValueError):
            self._give_up()

    def _end_phase(self) -> None:
        """Leave one line of the phase that ends."""
        phase = self._phase
        if phase is None or not self._enabled:
            return
        line = " · ".join(part for part in (f"{phase.name}: {seconds(phase.elapsed_s)}", phase.count()) if part)
        if self._lines is None:
            self._say(line)
            return
        try:
            self._lines.update(Text(""))
            self._lines.console.print(Text(line), soft_wrap=True)
        except (OSError, ValueError):
            self._give_up()

    def _say(self, line: str) -> None:
        if not self._enabled:
            return
        self._shown_s = time.monotonic()
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more, or the stream is closed
            self._give_up()

    def _give_up(self) -> None:
        self._enabled = False
        self._closed.set()
        lines, self._lines = self._lines, None
        if lines is not None:
            # Give sys.stdout and sys.stderr back without writing to the terminal that is gone.
            lines.console.file = open(os.devnull, "w")  # noqa: PTH123, SIM115 - as long as the console
            lines.stop()


def number(value: float) -> str:
    """A figure in at most three or so digits; NaN is a dash."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine_words(machine: Mapping[str, float]) -> list[str]:
    """Power, utilization and memory as a live view shows them; nothing for what was not read."""
    said = []
    if "power_w" in machine:
        said.append(f"{machine['power_w']:,.0f} W")
    if "gpu_busy_percent" in machine:
        said.append(f"GPU {machine['gpu_busy_percent']:.0f} %")
    for key, name in (("gpu_memory_mib", "GPU memory"), ("memory_mib", "memory")):
        if key in machine:
            said.append(f"{name} {machine[key] / 1024:,.1f} GiB")
    return said


def seconds(value: float) -> str:
    """A duration: 4.2 s, 1:05 min, 2:03:09 h."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _plain(phase: _Phase) -> str:
    return " · ".join(part for part in (f"[{phase.name}] {phase.clock()}", phase.count(), phase.rates()) if part)


def _render(phase: _Phase) -> Group:
    head = Table.grid(padding=(0, 2))
    share = phase.share
    head.add_row(
        Text(phase.name, style="bold"),
        ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=24),
        Text(phase.count()),
        Text(phase.clock(), style="cyan"),
    )
    return Group(
        head,
        Text(phase.rates(), style="red" if phase.live and phase.live.errors else "", overflow="ellipsis", no_wrap=True),
    )


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False
