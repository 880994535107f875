"""``python -m mlperf_exp.monitor FOLDER``: a run or a sweep as it goes on, from another terminal, node or day.

Only the folder is read (``live.jsonl``, ``telemetry.jsonl``, ``sweep.json``, ``result.json``), a few kilobytes a look:
it works wherever the folder is to be seen and costs the measured process nothing. It ends with the run; Ctrl-C leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlperf_exp import telemetry
from mlperf_exp.display import machine_words, number, seconds
from mlperf_exp.errors import ExperimentError, UserError
from mlperf_exp.report.text import plain
from mlperf_exp.telemetry.tail import machine
from mlperf_exp.track.tracker import read_object

_TAIL_BYTES = 32768
_WINDOW_S = 5.0  # percentiles are of the last line that has them, and that is no older
_SILENT_S = 20.0  # without a line for so long, a run may be dead
_PLAIN_S = 10.0
_JOBS_SHOWN = 30
_LOST = ("failed", "interrupted", "out of memory")


@dataclass(frozen=True, slots=True)
class RunLook:
    """A run now. ``state`` is for people; ``ended`` says that nothing more will come."""

    name: str
    state: str
    ended: bool
    tone: str = ""
    phase: str = ""
    done: int | None = None
    expected: int | None = None
    elapsed_s: float | None = None
    rates: str = ""
    machine: Mapping[str, float] = field(default_factory=dict)

    def count(self) -> str:
        """Queries so far."""
        if self.done is None:
            return ""
        of = f"/{self.expected:,}" if self.expected and self.expected >= self.done else ""
        return f"{self.done:,}{of} queries"

    def left_s(self) -> float | None:
        """How long the queries left will take, at the rate so far."""
        if self.ended or not (self.done and self.expected and self.elapsed_s) or self.expected <= self.done:
            return None
        return (self.expected - self.done) * self.elapsed_s / self.done

    def line(self) -> str:
        """All of it in one line."""
        left = self.left_s()
        clock = "" if self.elapsed_s is None else seconds(self.elapsed_s) + (f", {seconds(left)} left" if left else "")
        parts = (self.state, self.phase, self.count(), clock, self.rates, *machine_words(self.machine))
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class JobLook:
    """A job of a sweep: its number, what sets it apart, how it stands."""

    number: str
    own: str
    status: str
    seconds: float | None
    run: RunLook | None = None


@dataclass(frozen=True, slots=True)
class SweepLook:
    """A sweep now; ``counts`` and ``remaining_s`` as the sweep itself wrote them, where it did."""

    name: str
    state: str
    ended: bool
    jobs: tuple[JobLook, ...]
    remaining_s: float | None = None

    def counts(self) -> str:
        """Jobs by how they stand."""
        found: dict[str, int] = {}
        for job in self.jobs:
            found[job.status] = found.get(job.status, 0) + 1
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def line(self) -> str:
        """All of it in one line."""
        rest = "" if self.remaining_s is None or self.ended else f"{seconds(self.remaining_s)} left"
        going = [f"[{job.number}] {job.run.line()}" for job in self.jobs if job.run and not job.run.ended]
        return " · ".join(part for part in (self.state, self.counts(), rest, *going[:4]) if part)


def look(folder: Path, now: float | None = None) -> RunLook | SweepLook:
    """What the folder says now.

    Raises:
        UserError: it is no folder of a run or of a sweep.
    """
    if not folder.is_dir():
        raise UserError("FOLDER", f"{folder} is no folder", "Name the folder of a run or of a sweep")
    moment = time.time() if now is None else now
    sweep = read_object(folder / "sweep.json")
    if isinstance(sweep.get("jobs"), list):
        return _sweep(folder, sweep, moment)
    if any((folder / name).exists() for name in ("result.json", "live.jsonl", "config.yaml", "run.lock")):
        return _run(folder, moment)
    numbered = sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
    if numbered or (folder / "multirun.yaml").exists():
        jobs = tuple(_job(p.name, "", "", None, _run(p, moment)) for p in numbered)
        done = bool(jobs) and all(job.run is not None and job.run.ended for job in jobs)
        return SweepLook(folder.name, "the sweep keeps no record", done, jobs)
    raise UserError("FOLDER", f"{folder} holds no run", "Name the folder of a run or of a sweep")


def _sweep(folder: Path, record: Mapping[str, Any], now: float) -> SweepLook:
    jobs = []
    for entry in record["jobs"]:
        if not isinstance(entry, dict):
            continue
        place = folder / str(entry["folder"]) if entry.get("folder") else None
        run = _run(place, now) if place is not None and entry.get("status") == "running" and place.is_dir() else None
        own = entry.get("own")
        words = " ".join(f"{key}={value}" for key, value in own.items()) if isinstance(own, dict) else ""
        status = str(entry.get("outcome") or entry.get("status") or "waiting")
        took = entry.get("seconds")
        jobs.append(_job(str(entry.get("number", "?")), words, status, took, run))
    remaining, status = record.get("remaining_s"), str(record.get("status") or "running")
    return SweepLook(
        plain(record.get("id") or folder.name, 100),
        status,
        status != "running",
        tuple(jobs),
        float(remaining) if isinstance(remaining, int | float) else None,
    )


def _job(number_: str, own: str, status: str, took: Any, run: RunLook | None) -> JobLook:
    known = float(took) if isinstance(took, int | float) else None
    return JobLook(plain(number_, 20), plain(own, 300), plain(status or (run.state if run else ""), 60), known, run)


def _run(folder: Path, now: float) -> RunLook:
    result = read_object(folder / "result.json")
    lines = list(_tail(folder / "live.jsonl"))
    last = lines[-1] if lines else {}
    shown: dict[str, Any] = {
        "name": folder.name,
        "phase": plain(last.get("phase") or "", 40),
        "done": _whole(last.get("completed")),
        "expected": _whole(last.get("expected")),
        "elapsed_s": _real(last.get("elapsed_s")),
        "rates": _rates(lines),
    }
    if result:
        run, verdict, metrics = (_part(result, key) for key in ("run", "verdict", "metrics"))
        status = str(run.get("status"))
        valid = verdict.get("valid") is True
        state = ("VALID" if valid else "INVALID") if status == "finished" else status
        shown |= {"name": plain(run.get("name") or folder.name, 100), "rates": _final(metrics), "phase": ""}
        shown |= {"done": _whole(metrics.get("completed")), "expected": None}
        shown["elapsed_s"] = _real(_part(result, "phases").get("total_s"))
        return RunLook(state=state, ended=True, tone="green" if valid else "red", **shown)
    age = now - max((_age(folder / name) for name in ("live.jsonl", telemetry.FILE, "run.log")), default=0.0)
    state = "running" if lines else "starting"
    if age > _SILENT_S:
        return RunLook(state=f"no sign of life for {seconds(age)}", ended=False, tone="yellow", **shown)
    return RunLook(state=state, ended=False, machine=machine(folder / telemetry.FILE), **shown)


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole lines of a file that is being written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
    except OSError:
        return
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _rates(lines: list[dict[str, Any]]) -> str:
    """The last figures within the window: where few queries end, not every line has percentiles."""
    if not lines:
        return ""
    last = lines[-1]
    at = _real(last.get("at")) or 0.0
    recent = [line for line in lines if line.get("phase") == last.get("phase")]
    recent = [line for line in recent if (_real(line.get("at")) or 0.0) > at - _WINDOW_S]

    def latest(key: str) -> float:
        return next((x for line in reversed(recent) if (x := _real(line.get(key))) is not None), float("nan"))

    errors = _whole(last.get("errors")) or 0
    return " · ".join(
        (
            f"{number(latest('samples_per_second'))} samples/s",
            f"{number(latest('tokens_per_second'))} tokens/s",
            f"TTFT p50 {number(latest('ttft_p50_ms'))} p99 {number(latest('ttft_p99_ms'))} ms",
            f"TPOT p50 {number(latest('tpot_p50_ms'))} p99 {number(latest('tpot_p99_ms'))} ms",
            f"{errors:,} errors" if errors != 1 else "1 error",
        )
    )


def _final(metrics: Mapping[str, Any]) -> str:
    shown = (("samples_per_second", "{} samples/s"), ("tokens_per_second", "{} tokens/s"),
             ("ttft_p99_ms", "TTFT p99 {} ms"), ("tpot_p99_ms", "TPOT p99 {} ms"),
             ("joules_per_token", "{} J/token"))  # fmt: skip
    return " · ".join(words.format(number(x)) for key, words in shown if (x := _real(metrics.get(key))) is not None)


def _part(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def draw(seen: RunLook | SweepLook) -> RenderableType:
    """The view for a terminal; nothing of the folder is read as rich's markup."""
    if isinstance(seen, RunLook):
        return _draw_run(seen)
    rest = "" if seen.remaining_s is None or seen.ended else f", {seconds(seen.remaining_s)} left"
    head = Text.assemble((seen.name, "bold"), f"  {seen.state} · {seen.counts()}{rest}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("Job", "Differs in", "State", "Time"):
        table.add_column(name, justify="right" if name in ("Job", "Time") else "left")
    going = [job for job in seen.jobs if job.run is not None and not job.run.ended]
    others = [job for job in seen.jobs if job not in going]
    for job in [*going, *others][:_JOBS_SHOWN]:
        style = {"valid": "green", "invalid": "yellow", "VALID": "green", "INVALID": "yellow"}.get(job.status, "")
        style = "red" if job.status in _LOST else style
        took = "" if job.seconds is None else seconds(job.seconds)
        table.add_row(Text(job.number), Text(job.own), Text(job.status, style=style), Text(took))
    parts: list[RenderableType] = [head, Text()]
    for job in going[:4]:
        assert job.run is not None
        parts += [Text(f"job {job.number}", style="dim"), _draw_run(job.run), Text()]
    parts.append(table)
    if len(seen.jobs) > _JOBS_SHOWN:
        parts.append(Text(f"and {len(seen.jobs) - _JOBS_SHOWN} more jobs", style="dim"))
    return Group(*parts)


def _draw_run(seen: RunLook) -> RenderableType:
    head = Text.assemble((seen.name, "bold"), "  ", (seen.state, seen.tone or "cyan"))
    left = seen.left_s()
    row = Table.grid(padding=(0, 2))
    share = seen.done / seen.expected if seen.done is not None and seen.expected else None
    clock = "" if seen.elapsed_s is None else seconds(seen.elapsed_s) + (f", {seconds(left)} left" if left else "")
    bar = ProgressBar(total=1.0, completed=min(share, 1.0), width=24) if share is not None else Text()
    row.add_row(Text(seen.phase), bar, Text(seen.count()), Text(clock))
    parts: list[RenderableType] = [head, row]
    if seen.rates:
        parts.append(Text(seen.rates))
    words = machine_words(seen.machine)
    if words:
        parts.append(Text(" · ".join(words), style="dim"))
    return Group(*parts)


def watch(folder: Path, interval_s: float | None, once: bool, console: Console) -> None:
    """Show the folder until it has ended, once if told so; plain lines where there is no terminal."""
    seen = look(folder)
    if once or not console.is_terminal:
        said = ""
        while True:
            line = seen.line()
            if line != said:
                console.print(Text(f"{seen.name}: {line}"), soft_wrap=True)
                said = line
            if once or seen.ended:
                return
            time.sleep(_PLAIN_S if interval_s is None else interval_s)
            seen = look(folder)
    try:
        with Live(draw(seen), console=console, auto_refresh=False) as lines:
            while not seen.ended:
                time.sleep(1.0 if interval_s is None else interval_s)
                seen = look(folder)
                lines.update(draw(seen), refresh=True)
    finally:
        console.show_cursor(True)  # Ctrl-C may come before the view is whole


def main(arguments: list[str] | None = None) -> int:
    """Watch a folder; 0: it ended, or Ctrl-C; 2: no such folder."""
    parser = argparse.ArgumentParser(
        "python -m mlperf_exp.monitor", description="Watch a run or a sweep by its folder."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a run or of a sweep")
    parser.add_argument("--once", action="store_true", help="show how it stands now, and leave")
    parser.add_argument(
        "--interval", type=float, metavar="S", help="seconds between two looks (1; without a terminal 10)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.interval is not None and options.interval < 0.1:
            raise UserError("--interval", f"{options.interval:g} is too short", "Give at least 0.1")
        watch(options.folder, options.interval, options.once, Console())
    except ExperimentError as error:
        print(f"mlperf_exp.monitor: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # nobody reads any more; nor shall the interpreter's last flush fail
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
