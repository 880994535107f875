"""Pareto fronts, latency against load with its knee, and scaling over accelerators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mlperf_exp.compare.groups import Group
from mlperf_exp.report.text import number
from mlperf_exp.report.view import part

LOAD = "scenario.target_qps"


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that none beats: more of the first figure is better, less of the second."""
    best, kept = float("inf"), []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if points[index][1] < best:
            best = points[index][1]
            kept.append(index)
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class Curve:
    """One system under several loads: ``loads`` (queries/s asked for) rise, each with the group measured at it."""

    name: str
    loads: tuple[float, ...]
    groups: tuple[Group, ...]

    def ys(self, metric: str) -> list[float | None]:
        """A figure at each load."""
        return [group.value(metric) for group in self.groups]


def load_curves(groups: Sequence[Group]) -> list[Curve]:
    """Groups that differ in nothing but the load asked for, where there are at least two loads."""
    same: dict[str, dict[float, Group]] = defaultdict(dict)
    for group in groups:
        load = number(part(group.first.config, "scenario").get("target_qps"))
        if load is None or part(group.first.config, "scenario").get("name") == "offline":
            continue
        rest = sorted((k, v) for k, v in group.first.facts.items() if k not in (LOAD, "host name"))
        same[repr((rest, group.baseline))].setdefault(load, group)
    curves = []
    for points in same.values():
        if len(points) > 1:
            loads = tuple(sorted(points))
            chosen = tuple(points[load] for load in loads)
            curves.append(Curve(_common(chosen), loads, chosen))
    return curves


def _common(groups: Sequence[Group]) -> str:
    """What the groups' labels have in common."""
    words = [group.label.split() for group in groups]
    shared = [word for word in words[0] if all(word in other for other in words) and not word.startswith("target_qps=")]
    return " ".join(shared) or groups[0].first.name


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a curve turns up: ``load`` in queries/s, and the rule by which it was found."""

    load: float
    next_load: float | None
    rule: str


def knee(curve: Curve, bounds: dict[str, float | None]) -> Knee | None:
    """The highest load up to which every bounded figure keeps its bound; without bounds, the point farthest from the
    chord of the curve TTFT p99 (or latency p99) over load, both scaled to 0..1 (Satopaa et al., Kneedle, 2011).

    ``bounds``: metric -> bound in ms. None where not even the lowest load keeps them, or the curve has no bend.
    """
    known = {metric: bound for metric, bound in bounds.items() if bound is not None and any(curve.ys(metric))}
    if known:
        kept = 0
        for group in curve.groups:
            values = [(group.value(metric), bound) for metric, bound in known.items()]
            if any(value is None or value > bound for value, bound in values):
                break
            kept += 1
        if not kept:
            return None
        beyond = curve.loads[kept] if kept < len(curve.loads) else None
        return Knee(curve.loads[kept - 1], beyond, "highest load within the bounds")
    metric = next(
        (name for name in ("ttft_p99_ms", "latency_p99_ms") if all(y is not None for y in curve.ys(name))), None
    )
    if metric is None or len(curve.loads) < 4:
        return None
    ys = [y for y in curve.ys(metric) if y is not None]
    spread, span = max(ys) - min(ys), curve.loads[-1] - curve.loads[0]
    if spread <= 0 or span <= 0:
        return None
    below = [(x - curve.loads[0]) / span - (y - min(ys)) / spread for x, y in zip(curve.loads, ys, strict=True)]
    best = max(range(len(below)), key=below.__getitem__)
    if below[best] < 0.15:
        return None
    beyond = curve.loads[best + 1] if best + 1 < len(curve.loads) else None
    return Knee(curve.loads[best], beyond, "farthest from the curve's chord")


@dataclass(frozen=True, slots=True)
class Scaling:
    """Throughput over accelerators: ``efficiency`` is against perfect scaling from the smallest measured."""

    name: str
    counts: tuple[int, ...]
    rates: tuple[float, ...]
    efficiency: tuple[float, ...]
    groups: tuple[Group, ...]


def scaling(groups: Sequence[Group], metric: str) -> list[Scaling]:
    """Groups that differ in the number of accelerators, and in what that brings: network, load, derived arguments."""
    same: dict[str, dict[int, Group]] = defaultdict(dict)
    for group in groups:
        rate = group.value(metric)
        if rate is None or rate <= 0:
            continue
        size = ("hw.name", "hw.nodes", "hw.gpus_per_node", "hw.network", "backend.replicas", LOAD, "host name", "GPUs")
        rest = [(k, v) for k, v in group.first.facts.items() if k not in size and not k.startswith("engine.")]
        slot = same[repr((sorted(rest), group.baseline))]
        before = slot.get(group.first.accelerators)
        if before is None or (before.value(metric) or 0) < rate:
            slot[group.first.accelerators] = group
    found = []
    for sizes in same.values():
        if len(sizes) < 2:
            continue
        counts = tuple(sorted(sizes))
        chosen = tuple(sizes[count] for count in counts)
        rates = tuple(group.value(metric) or 0.0 for group in chosen)
        each = rates[0] / counts[0]
        efficiency = tuple(rate / (each * count) for rate, count in zip(rates, counts, strict=True))
        found.append(Scaling(_common(chosen), counts, rates, efficiency, chosen))
    return found
