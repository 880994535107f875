"""The page's charts: groups as marks, bars and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlperf_exp.compare import svg
from mlperf_exp.compare.curves import Curve, Knee, Scaling, front
from mlperf_exp.compare.groups import Group
from mlperf_exp.compare.metrics import BY_NAME
from mlperf_exp.report.text import figure, number
from mlperf_exp.report.view import PHASES, part

MOST_BARS = 24
_MOST_SERIES = 6


@dataclass(frozen=True, slots=True)
class Picture:
    """One chart: ``legend`` names its series in the order of their marks."""

    name: str
    title: str
    caption: str
    drawing: Markup
    legend: tuple[tuple[Markup, str], ...] = ()


def bounds(curve: Curve) -> dict[str, float | None]:
    """The bounds in force for a curve's figures, in ms."""
    rules = part(curve.groups[0].first.config, "scenario")
    return {f"{key}_p99_ms": number(rules.get(f"{key}_ms")) for key in ("ttft", "tpot", "latency")}


class Drawing:
    """Groups as marks and bars; ``place`` is each run's row in the table."""

    def __init__(self, place: Mapping[int, int]) -> None:
        self._place = place

    def _runs(self, one: Group) -> tuple[int, ...]:
        return tuple(self._place[id(run)] for run in one.runs)

    def pareto(self, groups: Sequence[Group], rate: str) -> list[Picture]:
        """Throughput against TTFT p99 (or latency p99), and against energy."""
        pictures = []
        slow = "ttft_p99_ms" if any("ttft_p99_ms" in one.means for one in groups) else "latency_p99_ms"
        energy = "joules_per_token" if rate == "tokens_per_second" else "joules_per_sample"
        for cost in (slow, energy):
            shown = [one for one in groups if rate in one.means and cost in one.means and one.value(rate)]
            if len(shown) > 1:
                pictures.append(self._front(shown, rate, cost))
        return pictures

    def _front(self, groups: Sequence[Group], rate: str, cost: str) -> Picture:
        points = [(one.value(rate) or 0.0, one.value(cost) or 0.0) for one in groups]
        best = front(points)
        marks = [
            svg.Mark(x, y, svg.tooltip(one.label, *self._figures(one)), self._runs(one))
            for one, (x, y) in zip(groups, points, strict=True)
        ]
        others = tuple(mark for i, mark in enumerate(marks) if i not in best)
        series = [
            svg.Series(
                f"on the front ({len(best)})", tuple(marks[i] for i in sorted(best, key=lambda i: points[i])), True
            ),
            svg.Series("beaten by one of them", others),
        ]
        x = svg.axis(_named(rate), [p[0] for p in points], zero=True)
        y = svg.axis(_named(cost), [p[1] for p in points], may_log=True)
        least = min(best, key=lambda i: points[i][1])
        most = max(best, key=lambda i: points[i][0])
        title = f"{BY_NAME[rate].label} against {BY_NAME[cost].label}"
        caption = (
            f"Right and low is better. Most: {figure(points[most][0], BY_NAME[rate].unit)} at "
            f"{figure(points[most][1], BY_NAME[cost].unit)} ({groups[most].label}); least: "
            f"{figure(points[least][1], BY_NAME[cost].unit)} ({groups[least].label})."
        )
        drawing = svg.plot(x, y, series, f"{title}. {caption}")
        return Picture(f"pareto-{cost}", title, caption, drawing, _legend(series))

    @staticmethod
    def _figures(one: Group) -> list[tuple[str, float | None, str]]:
        shown = ("samples_per_second", "tokens_per_second", "ttft_p99_ms", "tpot_p99_ms", "joules_per_token")
        return [(BY_NAME[name].label, one.value(name), BY_NAME[name].unit) for name in shown]

    def load(self, curves: Sequence[tuple[Curve, Knee | None]]) -> list[Picture]:
        """p99 latencies over the load asked for, a line a system."""
        pictures: list[Picture] = []
        shown = list(curves)[:_MOST_SERIES]
        for metric in ("ttft_p99_ms", "tpot_p99_ms", "latency_p99_ms"):
            if metric == "latency_p99_ms" and pictures:
                continue
            series = []
            for curve, _ in shown:
                marks = tuple(
                    svg.Mark(load, value, svg.tooltip(one.label, *self._figures(one)), self._runs(one),
                             one.means[metric].low, one.means[metric].high)
                    for load, one in zip(curve.loads, curve.groups, strict=True)
                    if (value := one.value(metric)) is not None
                )  # fmt: skip
                if marks:
                    series.append(svg.Series(curve.name, marks, True))
            values = [mark.y for one in series for mark in one.marks]
            if not values:
                continue
            bound = next((b for c, _ in shown if (b := bounds(c).get(metric)) is not None), None)
            near = [bound] if bound is not None and bound < 3 * max(values) else []
            x = svg.axis("Load asked for (queries/s)", [m.x for one in series for m in one.marks], zero=True)
            y = svg.axis(_named(metric), [*values, *near], zero=True, may_log=True)
            limits = [(bound, f"bound {figure(bound, 'ms')}")] if bound is not None else []
            bends = [(k.load, f"knee {k.load:g}") for _, k in shown if k is not None][:1] if len(shown) == 1 else []
            title = f"{BY_NAME[metric].label} against load"
            more = f" The first {_MOST_SERIES} of {len(curves)} systems." if len(curves) > _MOST_SERIES else ""
            beyond = f" The bound of {figure(bound, 'ms')} lies above the chart." if limits and not near else ""
            caption = f"One line a system, one mark a load; whiskers are 95 % intervals of repeats.{beyond}{more}"
            drawing = svg.plot(x, y, series, f"{title}. {caption}", limits, bends)
            pictures.append(Picture(f"load-{metric}", title, caption, drawing, _legend(series)))
        return pictures

    def bars(self, groups: Sequence[Group], rate: str) -> list[Picture]:
        """Throughput of each configuration, best first, and the honest one."""
        return [
            picture
            for name in (rate, "wall_samples_per_second")
            if (picture := self._bars(groups, name, f"{BY_NAME[name].label} of each configuration")) is not None
        ]

    def energy(self, groups: Sequence[Group]) -> list[Picture]:
        """Energy for a token or sample of each configuration, least first."""
        pictures = (
            self._bars(groups, name, f"{BY_NAME[name].label} of each configuration")
            for name in ("joules_per_token", "joules_per_sample")
        )
        return [picture for picture in pictures if picture is not None]

    def _bars(self, groups: Sequence[Group], name: str, title: str) -> Picture | None:
        metric = BY_NAME[name]
        with_it = [one for one in groups if name in one.means]
        if not with_it:
            return None
        ordered = sorted(with_it, key=lambda one: -metric.better * one.means[name].value)
        rows = []
        for one in ordered[:MOST_BARS]:
            mean = one.means[name]
            count = f" (n={mean.count})" if mean.count > 1 else ""
            words = svg.tooltip(one.label, *self._figures(one))
            text = f"{figure(mean.value)}{count}"
            rows.append(svg.Bar(one.label, ((mean.value, 0),), text, words, self._runs(one), mean.low, mean.high))
        repeated = any(one.means[name].count > 1 for one in ordered)
        words = (
            "whiskers are 95 % intervals of the mean by Student's t"
            if repeated
            else "each was run once, so there are no intervals"
        )
        cut = f" The best {MOST_BARS} of {len(ordered):,}; all are in the table." if len(ordered) > MOST_BARS else ""
        caption = f"Means over repeats; {words}.{cut}"
        return Picture(f"bars-{name}", title, caption, svg.bars(rows, _named(name), f"{title}. {caption}"))

    def phases(self, groups: Sequence[Group]) -> list[Picture]:
        """Where the wall time went."""
        names = [key for key in PHASES if any(one.first.phases.get(key) for one in groups)]
        rows = []
        for one in [one for one in groups if one.first.phases][:MOST_BARS]:
            parts = tuple((one.first.phases[key], i) for i, key in enumerate(names) if one.first.phases.get(key))
            total = sum(value for value, _ in parts)
            said = "\n".join(f"{PHASES[names[i]]}: {figure(value, 's')}" for value, i in parts)
            if parts:
                rows.append(svg.Bar(one.label, parts, figure(total, "s"), f"{one.label}\n{said}", self._runs(one)))
        if not rows:
            return []
        title = "Where the time went"
        cut = f" The first {MOST_BARS} of {len(groups):,} configurations." if len(groups) > MOST_BARS else ""
        caption = f"Phases of each configuration's first run, in their order; the waits between them are left out.{cut}"
        drawing = svg.bars(rows, "Time (s)", f"{title}. {caption}", kinds=len(names))
        legend = tuple((_swatch(i), PHASES[key]) for i, key in enumerate(names))
        return [Picture("phases", title, caption, drawing, legend)]

    def scaling(self, sizes: Sequence[Scaling], rate: str) -> list[Picture]:
        """Throughput over accelerators beside perfect scaling."""
        if not sizes:
            return []
        series = [svg.Series(one.name, tuple(self._sizes(one, BY_NAME[rate].unit)), True) for one in sizes[:3]]
        series += [
            svg.Series(f"{one.name}: perfect", tuple(
                svg.Mark(count, one.rates[0] / one.counts[0] * count, "perfect scaling") for count in one.counts), True)
            for one in sizes[:3]
        ]  # fmt: skip
        xs = [mark.x for one in series for mark in one.marks]
        ys = [mark.y for one in series for mark in one.marks]
        title = "Scaling over accelerators"
        caption = "Efficiency is the throughput over that of perfect scaling from the smallest size measured."
        drawing = svg.plot(
            svg.axis("Accelerators", xs, zero=True), svg.axis(_named(rate), ys, zero=True), series, title
        )
        return [Picture("scaling", title, caption, drawing, _legend(series))]

    def _sizes(self, one: Scaling, unit: str) -> Iterator[svg.Mark]:
        for count, rate, share, group in zip(one.counts, one.rates, one.efficiency, one.groups, strict=True):
            words = f"{group.label}\n{figure(rate, unit)}\nefficiency {100 * share:.0f} %"
            yield svg.Mark(count, rate, words, self._runs(group))


def _named(name: str) -> str:
    metric = BY_NAME[name]
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


def _legend(series: Sequence[svg.Series]) -> tuple[tuple[Markup, str], ...]:
    return tuple((svg.shape(i), one.name) for i, one in enumerate(series)) if len(series) > 1 else ()


def _swatch(number: int) -> Markup:
    dense = " light" if number >= 6 else ""
    return Markup(
        '<svg class="key" viewBox="0 0 16 16" aria-hidden="true">'
        '<rect class="bar s{}{}" x="2" y="3" width="12" height="10"/></svg>'
    ).format(number % 6, dense)
