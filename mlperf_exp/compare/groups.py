"""Runs of one configuration together: means with confidence intervals, and a label made of what differs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlperf_exp.compare.runs import Run

CONFIDENCE = 0.95
_MACHINE = ("host name", "platform", "CPU", "CPUs")  # say little in a label
_SHORT = 60  # characters of one value in a label


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of one figure over repeats; ``low`` and ``high`` are its confidence interval, None for a single run."""

    value: float
    count: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Repeats of one configuration (often one run only)."""

    label: str
    runs: tuple[Run, ...]
    means: dict[str, Mean] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """Any of them: they have their configuration in common."""
        return self.runs[0]

    @property
    def baseline(self) -> bool:
        """Whether it is the baseline's."""
        return self.first.baseline

    def value(self, name: str) -> float | None:
        """A figure's mean; None where it was not measured."""
        mean = self.means.get(name)
        return None if mean is None else mean.value

    def finite(self, name: str) -> list[float]:
        """A figure of all runs that have it."""
        return [run.metrics[name] for run in self.runs if name in run.metrics]


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs."""
    together: dict[tuple[str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        together[run.plan, run.baseline].append(run)
    members = list(together.values())
    labels = _labels([some[0] for some in members])
    return [Group(label, tuple(some), _means(some)) for label, some in zip(labels, members, strict=True)]


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """The mean and its interval by Student's t distribution."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Mean(middle, len(values))
    half = quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(middle, len(values), middle - half, middle + half)


def quantile(freedom: int, confidence: float) -> float:
    """Student's t: with ``freedom`` degrees, ``confidence`` of it lies between minus and plus this."""
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, freedom))


def _means(runs: Sequence[Run]) -> dict[str, Mean]:
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {name: mean([run.metrics[name] for run in runs if name in run.metrics]) for name in names}


def varying(runs: Iterable[Run]) -> list[str]:
    """The facts that differ between runs, but for those that follow from a group's name (``hw.memory_gib``)."""
    every = [run.facts for run in runs]
    keys = dict.fromkeys(key for facts in every for key in facts)
    differing = [key for key in keys if len({facts.get(key) for facts in every}) > 1]
    return [key for key in differing if not _follows(key, differing, every)]


def _follows(key: str, differing: Sequence[str], every: Sequence[Mapping[str, str]]) -> bool:
    """Whether ``key`` has one value for each name of its group, as a profile's figures have."""
    head = key.split(".", 1)[0]
    name = f"{head}.name"
    if "." not in key or key == name or name not in differing:
        return False
    pairs = {(facts.get(name), facts.get(key)) for facts in every}
    return len(pairs) == len({first for first, _ in pairs})


def _labels(runs: Sequence[Run]) -> list[str]:
    """What differs, as ``target_qps=20 max_num_seqs=256``; the run's name where nothing does."""
    keys = varying(runs)
    of_plan = [key for key in keys if " " not in key and "." in key and not key.startswith("engine.")] + [
        key for key in keys if " " not in key and "." not in key and key[:1].islower() and key != "driver"
    ]
    labels = [_label(run, of_plan) for run in runs]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [i for i, other in enumerate(labels) if other == label]  # packages, drivers, derived arguments
        more = [key for key in varying(runs[i] for i in alike) if key not in _MACHINE]
        for i in alike:
            labels[i] = " ".join(filter(None, [label, _label(runs[i], more[:3], "")]))
    return [f"{label} (baseline)" if run.baseline else label for label, run in zip(labels, runs, strict=True)]


def _label(run: Run, keys: Sequence[str], otherwise: str | None = None) -> str:
    parts = []
    for key in keys:
        value = run.facts.get(key)
        if value is None or value == "null":
            continue
        short = value if len(value) <= _SHORT else value[: _SHORT - 1] + "…"
        head, _, last = key.rpartition(".")
        parts.append(short if last == "name" else f"{last or head}={short}")
    return " ".join(parts) or (run.name if otherwise is None else otherwise)
