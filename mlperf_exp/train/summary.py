"""``python -m mlperf_exp.train.summary RUN...``: MLPerf's result of several runs, the fastest and slowest left out.

A run's time is that from run_start to run_stop in MLPerf's own log. One run that did not reach the target counts as the
slowest; with a second one there is no result. A sweep's folder stands for its jobs.

Source: mlcommons/training_policies, "Runs and Scoring"; mlcommons/logging, ``result_summarizer``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.errors import ExperimentError, UserError
from mlperf_exp.train.rules import BENCHMARKS

_KEY = "RUN"
LOG = Path("train") / "result_0.txt"


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: ``minutes`` is infinite where the target was not reached."""

    folder: Path
    benchmark: str
    seed: int
    minutes: float
    settings: str  # all of the configuration that five runs share


@dataclass(frozen=True, slots=True)
class Summary:
    """Several runs: ``minutes`` is the mean of those that count, None where there is no result; ``wanted`` runs."""

    benchmark: str
    runs: tuple[Timed, ...]
    wanted: int
    counted: tuple[float, ...]
    minutes: float | None
    problem: str | None


def summarize(folders: Sequence[Path]) -> Summary:
    """The result of the runs in ``folders``.

    Raises:
        UserError: one is no training run, or they are not of one experiment.
    """
    runs = tuple(timed(folder) for folder in expanded(folders))
    first = runs[0]
    for run in runs[1:]:
        if run.settings != first.settings:
            key = _difference(first.settings, run.settings)
            apart = f"{run.folder} and {first.folder} are of different experiments: they differ in {key}"
            raise UserError(_KEY, apart, "Give runs that differ in nothing but their seed")
    wanted = next((known.runs for known in BENCHMARKS if known.name == first.benchmark), 5)
    ordered = sorted(run.minutes for run in runs)
    problem: str | None = None
    seeds = {run.seed for run in runs}
    failed = sum(math.isinf(minutes) for minutes in ordered)
    if len(runs) != wanted:
        problem = f"{len(runs)} runs, and {wanted} make a result"
    elif len(seeds) < len(runs):
        problem = "two runs have the same seed"
    elif failed > 1:
        problem = f"{failed} runs did not reach the target, and one may"
    counted = tuple(minutes for minutes in ordered[1:-1] if not math.isinf(minutes))
    mean = sum(counted) / len(counted) if counted and problem is None else None
    return Summary(first.benchmark, runs, wanted, counted, mean, problem)


def expanded(folders: Sequence[Path]) -> list[Path]:
    """The runs in ``folders``, where a sweep stands for its jobs."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted((path.parent.parent for path in folder.glob(f"*/{LOG}")), key=lambda path: path.name)
        found += inside if inside and not (folder / LOG).exists() else [folder]
    return list(dict.fromkeys(found))


def timed(folder: Path) -> Timed:
    """A run's time, by MLPerf's log.

    Raises:
        UserError: the folder holds no log of a whole run.
    """
    try:
        lines = (folder / LOG).read_text(errors="replace").splitlines()
        config = json.loads((folder / "result.json").read_text())["plan"]["config"]
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"{folder} is no folder of a training run that came to its end"
        raise UserError(_KEY, problem, "Give folders with result.json and train/result_0.txt") from None
    events: dict[str, dict[str, Any]] = {}
    for line in lines:
        _, mark, text = line.partition(":::MLLOG ")
        if mark:
            event = json.loads(text)
            events[event["key"]] = event
    if not {"run_start", "run_stop", "seed", "submission_benchmark"} <= set(events):
        raise UserError(_KEY, f"{folder / LOG} has no run_start and run_stop", "Give runs that came to their end")
    reached = events["run_stop"]["metadata"].get("status") == "success"
    minutes = (events["run_stop"]["time_ms"] - events["run_start"]["time_ms"]) / 60_000
    shared = {key: value for key, value in config.items() if key not in ("seed", "name", "tracking", "progress")}
    return Timed(
        folder,
        str(events["submission_benchmark"]["value"]),
        int(events["seed"]["value"]),
        minutes if reached else math.inf,
        json.dumps(shared, sort_keys=True),
    )


def _difference(one: str, other: str) -> str:
    first, second = json.loads(one), json.loads(other)
    group = next(key for key in sorted({*first, *second}) if first.get(key) != second.get(key))
    a, b = first.get(group), second.get(group)
    if not isinstance(a, dict) or not isinstance(b, dict):
        return str(group)
    return f"{group}.{next(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 a result, 3 none, 2 the user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m mlperf_exp.train.summary", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")
    options = parser.parse_args(arguments)
    try:
        summary = summarize(options.runs)
    except ExperimentError as error:
        print(f"summary: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(_plain(summary), indent=2) if options.json else _text(summary))
    return 0 if summary.minutes is not None else 3


def _plain(summary: Summary) -> dict[str, Any]:
    values = asdict(summary)
    for run in values["runs"]:
        run["folder"] = str(run["folder"])
        run["minutes"] = None if math.isinf(run["minutes"]) else run["minutes"]
        del run["settings"]
    return values


def _text(summary: Summary) -> str:
    lines = [f"{summary.benchmark}: {len(summary.runs)} of {summary.wanted} runs"]
    for run in sorted(summary.runs, key=lambda run: run.minutes):
        took = "did not reach the target" if math.isinf(run.minutes) else f"{run.minutes:.4f} min"
        lines.append(f"  seed {run.seed}: {took}  ({run.folder})")
    if summary.minutes is None:
        lines.append(f"No result: {summary.problem or 'nothing is left of it without the fastest and the slowest'}.")
    else:
        lines.append(f"Result: {summary.minutes:.4f} min, the mean of {len(summary.counted)} without the fastest and "
                     "the slowest.")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
