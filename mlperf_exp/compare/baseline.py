"""What is worse than a baseline beyond the noise.

Figures are compared by the logarithm of their ratio, since noise grows with the figure. The noise is measured where a
configuration was repeated: the standard deviation of the logarithms, pooled over all repeated configurations. A figure
is worse, or better, where zero lies outside the 99 % interval of the difference of the means by Student's t (the
several figures of several configurations would give false alarms at 95 %), and the difference is above 1 %. Where
nothing was repeated, the noise is not known: a difference counts from ``ASSUMED`` on, and the page says so.
Only configurations with the baseline's model, data set and load are held against it; engine, hardware and packages may
differ. A run that failed, or is no longer valid, is worse whatever its figures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlperf_exp.compare.groups import Group, quantile
from mlperf_exp.compare.metrics import METRICS, Metric
from mlperf_exp.report.text import figure

CONFIDENCE = 0.99
LEAST = 0.01  # a difference below is no matter, however certain
ASSUMED = 0.05  # the difference that counts where nothing was repeated
_LOAD = ("model", "dataset", "scenario")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one configuration against the baseline's. ``change`` is relative: 0.05 is 5 % more."""

    label: str
    metric: str
    before: str
    after: str
    change: float | None
    half_width: float | None  # of its interval, relative; None where the noise is not known
    verdict: str  # worse, better, within the noise
    why: str

    @property
    def worse(self) -> bool:
        """Whether it is a regression."""
        return self.verdict == "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything against the baseline; ``statistics`` says in one sentence how the noise was measured."""

    changes: tuple[Change, ...]
    statistics: str
    other_loads: int

    @property
    def regressions(self) -> list[Change]:
        """What is worse."""
        return [change for change in self.changes if change.worse]


def compare(groups: Sequence[Group]) -> Comparison | None:
    """Every comparable configuration against the baseline of its load; None where there is no baseline."""
    base = {_load(group): group for group in groups if group.baseline}
    if not base:
        return None
    changes: list[Change] = []
    other = 0
    for group in groups:
        if group.baseline:
            continue
        before = base.get(_load(group))
        if before is None:
            other += 1
            continue
        changes += _changes(before, group, groups)
    repeated = sum(len(group.runs) > 1 for group in groups)
    if repeated:
        how = (
            f"Noise: standard deviation of the logarithms, pooled over {repeated} repeated configurations; "
            f"{100 * CONFIDENCE:g} % intervals of the ratio of means by Student's t; differences below "
            f"{100 * LEAST:g} % do not count."
        )
    else:
        how = (
            f"No configuration was repeated, so the noise is not known: a difference counts from "
            f"{100 * ASSUMED:g} % on. Repeat runs to measure it."
        )
    return Comparison(tuple(changes), how, other)


def _load(group: Group) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, v) for k, v in group.first.facts.items() if k.split(".", 1)[0] in _LOAD))


def _changes(before: Group, after: Group, groups: Sequence[Group]) -> Iterator[Change]:
    broken = [run for run in after.runs if run.status != "finished"]
    if broken:
        why = broken[0].reasons[0] if broken[0].reasons else "no reason is recorded"
        yield Change(after.label, "status", before.first.status, broken[0].status, None, None, "worse", why)
    was, now = all(run.valid for run in before.runs), all(run.valid for run in after.runs)
    if was and not now:
        why = next((run.reasons[0] for run in after.runs if run.reasons), "no reason is recorded")
        yield Change(after.label, "verdict", "VALID", "INVALID", None, None, "worse", why)
    for metric in METRICS:
        if metric.judged and metric.name in before.means:
            yield _change(metric, before, after, groups)


def _change(metric: Metric, before: Group, after: Group, groups: Sequence[Group]) -> Change:
    old, new = before.means[metric.name].value, after.value(metric.name)
    shown = figure(old, metric.unit), figure(new, metric.unit)
    if new is None:
        gone = not broken_off(after)
        verdict, why = ("worse", "it is not measured any more") if gone else ("within the noise", "not measured")
        return Change(after.label, metric.label, *shown, None, None, verdict, why)
    if old <= 0 or new <= 0:
        return Change(after.label, metric.label, *shown, None, None, "within the noise", "no ratio with zero")
    ratio = math.log(new / old)
    spread, freedom = noise(metric.name, groups)
    if freedom:
        counts = 1 / len(before.finite(metric.name)) + 1 / len(after.finite(metric.name))
        half = quantile(freedom, CONFIDENCE) * spread * math.sqrt(counts)
        beyond = abs(ratio) > half and abs(ratio) > math.log1p(LEAST)
        why = f"{100 * math.expm1(ratio):+.1f} % ± {100 * math.expm1(half):.1f} %"
    else:
        half, beyond = None, abs(ratio) > math.log1p(ASSUMED)
        why = f"{100 * math.expm1(ratio):+.1f} %, the noise is not known"
    verdict = "within the noise" if not beyond else "better" if ratio * metric.better > 0 else "worse"
    return Change(after.label, metric.label, *shown, math.expm1(ratio), None if half is None else math.expm1(half),
                  verdict, why)  # fmt: skip


def broken_off(group: Group) -> bool:
    """Whether a run of the group ended early, which is told already."""
    return any(run.status != "finished" for run in group.runs)


def noise(metric: str, groups: Sequence[Group]) -> tuple[float, int]:
    """The pooled standard deviation of a figure's logarithm, and its degrees of freedom: 0 without repeats."""
    squares, freedom = 0.0, 0
    for group in groups:
        logs = [math.log(value) for value in group.finite(metric) if value > 0]
        if len(logs) > 1:
            squares += statistics.variance(logs) * (len(logs) - 1)
            freedom += len(logs) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)
