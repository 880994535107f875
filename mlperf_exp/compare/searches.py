"""What searches among the compared runs found, from the ``optuna.json`` beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlperf_exp.compare.metrics import BY_NAME
from mlperf_exp.compare.runs import Run
from mlperf_exp.report.text import figure, number, plain
from mlperf_exp.report.view import items, part
from mlperf_exp.sweep.record import SEARCH
from mlperf_exp.track.tracker import read_object

_NAMED = 3  # trials of a front that are named


def sentences(runs: Sequence[Run]) -> Iterator[str]:
    """One for each search, with what it tried, what did not count, and its best."""
    folders = dict.fromkeys(run.folder.parent for run in runs if run.folder is not None)
    for folder in folders:
        found = read_object(folder / SEARCH)
        if found.get("schema") == 1:
            yield _sentence(folder, found)


def _sentence(folder: Path, found: dict[str, Any]) -> str:
    names = [name for name in part(found, "objective") if name in BY_NAME]
    trials = [part({"t": trial}, "t") for trial in items(found.get("trials"))]
    pruned = sum(trial.get("state") == "pruned" for trial in trials)
    failed = sum(trial.get("state") == "failed" for trial in trials)
    uncounted = sum(trial.get("state") == "finished" and trial.get("feasible") is False for trial in trials)
    asides = [
        f"{count} {what}"
        for count, what in ((uncounted, "broke a constraint"), (pruned, "were spared a whole run"), (failed, "failed"))
        if count
    ]
    more = f" ({', '.join(asides)})" if asides else ""
    tried = f"The search in {plain(folder.name, 80)} tried {len(trials)} settings by {' and '.join(names)}{more}"
    best = [trial for trial in trials if trial.get("number") in items(found.get("best"))]
    if not best:
        return f"{tried}; none kept all constraints."
    shown = "; ".join(_described(trial, names) for trial in best[:_NAMED])
    if len(best) == 1:
        return f"{tried}; the best is {shown}."
    rest = f", and {len(best) - _NAMED} more" if len(best) > _NAMED else ""
    return f"{tried}; none of the others beats these in all figures: {shown}{rest}."


def _described(trial: dict[str, Any], names: Sequence[str]) -> str:
    params = " ".join(f"{plain(key, 80)}={plain(value, 80)}" for key, value in part(trial, "params").items())
    values = [figure(number(value), BY_NAME[name].unit) for name, value in zip(names, items(trial.get("values")),
                                                                              strict=False)]  # fmt: skip
    return f"{params} with {', '.join(values)}"
