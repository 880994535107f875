"""Folders, or a filter for MLflow -> the runs to compare, and what was left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlperf_exp.compare.runs import LeftOut, Run, load, parse
from mlperf_exp.errors import UserError

# What a run leaves from its first second on.
_SIGNS = ("result.json", "config.yaml", "live.jsonl", "run.lock", "telemetry.jsonl")
_DEEPEST = 6


@dataclass(frozen=True, slots=True)
class Found:
    """The runs, and (where, why) of all that was not taken."""

    runs: tuple[Run, ...]
    left_out: tuple[tuple[str, str], ...]


def in_folders(folders: Sequence[Path]) -> Found:
    """Every run in these folders and below them, each once.

    Raises:
        UserError: a folder does not exist.
    """
    runs: dict[Path, Run] = {}
    left_out: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError("FOLDER", f"{folder} is no folder", "Name the folder of a sweep or of a run")
        empty = True
        for place in _run_folders(folder):
            empty = False
            try:
                runs.setdefault(place.resolve(), load(place, str(place)))
            except LeftOut as why:
                left_out[str(place)] = str(why)
        if empty:
            left_out[str(folder)] = "it holds no run"
    return Found(tuple(runs.values()), tuple(left_out.items()))


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders of runs, in the order of their names, numbers as numbers; what lies inside a run is not looked at."""
    for root, inside, files in os.walk(folder):
        here = Path(root)
        if any(sign in files for sign in _SIGNS) and "sweep.json" not in files:
            inside.clear()
            yield here
            continue
        if len(here.relative_to(folder).parts) >= _DEEPEST:
            inside.clear()
        inside[:] = sorted(
            (n for n in inside if not n.startswith(".")), key=lambda n: (len(n) if n.isdigit() else 99, n)
        )


def in_mlflow(filter_string: str, uri: str, experiment: str) -> Found:
    """The runs that MLflow finds by ``filter_string``.

    Raises:
        UserError: MLflow does not understand the filter, or cannot be reached.
    """
    from mlperf_exp.track.search import results  # MLflow takes seconds to import

    runs, left_out = [], []
    for run_id, text in results(filter_string, uri, experiment):
        where = f"MLflow run {run_id}"
        try:
            if text is None:
                raise LeftOut("MLflow holds no result.json of it")
            runs.append(parse(text, where))
        except LeftOut as why:
            left_out.append((where, str(why)))
    if not runs and not left_out:
        left_out.append((f"MLflow filter {filter_string}", "it matches no run"))
    return Found(tuple(runs), tuple(left_out))


def one_model(found: Found, wanted: str | None) -> Found:
    """The runs of one model, the most frequent where none is wanted; the others are left out by name.

    Raises:
        UserError: no run has the wanted model.
    """
    count = Counter(run.model for run in found.runs)
    if not count:
        return found
    chosen = wanted or count.most_common(1)[0][0]
    if chosen not in count:
        raise UserError("--model", f"no run has {chosen}", f"Choose from: {', '.join(sorted(count))}")
    others = tuple(
        (run.where, f"its model is {run.model}, and {chosen} is compared here (--model {run.model} compares that one)")
        for run in found.runs
        if run.model != chosen
    )
    return Found(tuple(run for run in found.runs if run.model == chosen), (*found.left_out, *others))


def together(parts: Iterable[Found]) -> Found:
    """Several findings as one; a run that is in several of them once, the baseline's first."""
    runs: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for found in parts:
        for run in found.runs:
            key = str(run.folder.resolve()) if run.folder else run.id
            runs.setdefault(key, run)
        left_out |= dict(found.left_out)
    return Found(tuple(runs.values()), tuple(left_out.items()))


def as_baseline(found: Found) -> Found:
    """The same runs, marked as the baseline."""
    return Found(tuple(replace(run, baseline=True) for run in found.runs), found.left_out)
