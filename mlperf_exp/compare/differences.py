"""What differs between any two runs: configuration, engine arguments, packages, driver, clocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlperf_exp.compare.runs import Run

_CLOCKS = (("gpu_sm_mhz_mean", "GPU clock, mean (MHz)"), ("gpu_celsius_max", "GPU temperature, highest (°C)"))


def all_facts(run: Run) -> dict[str, str]:
    """A run's facts, and the clocks that it was measured at."""
    clocks = {label: f"{run.metrics[name]:,.0f}" for name, label in _CLOCKS if name in run.metrics}
    return run.facts | clocks


def between(one: Run, other: Run) -> list[tuple[str, str, str]]:
    """(what, the one's, the other's) for all that differs."""
    left, right = all_facts(one), all_facts(other)
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key, "–"), right.get(key, "–")) for key in keys if left.get(key) != right.get(key)]


def table(runs: Sequence[Run]) -> list[tuple[str, list[str], list[int | None]]]:
    """For each fact that differs somewhere: its name, its values, and each run's value as a place among them."""
    every = [all_facts(run) for run in runs]
    keys = dict.fromkeys(key for facts in every for key in facts)
    found: list[tuple[str, list[str], list[int | None]]] = []
    for key in keys:
        values = list(dict.fromkeys(facts[key] for facts in every if key in facts))
        if len(values) > 1 or any(key not in facts for facts in every):
            place = {value: i for i, value in enumerate(values)}
            found.append((key, values, [place[facts[key]] if key in facts else None for facts in every]))
    return found


def embedded(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, Any]:
    """The same for the page's script."""
    return {
        "runs": [f"{run.id} · {label}" for run, label in zip(runs, labels, strict=True)],
        "facts": [[key, values, places] for key, values, places in table(runs)],
    }
