"""The charts: the only import of matplotlib.

One drawing gives both forms: a PNG on white for MLflow and Markdown, and an SVG to stand inside a page, whose colours
are the page's CSS variables (so that it follows light and dark) and whose text is text.
Nothing that comes from outside is drawn, only numbers and this module's own words.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mlperf_exp.report.series import Distribution, Flight, Floats, Rate, Series
from mlperf_exp.report.text import duration, figure
from mlperf_exp.report.view import BETWEEN

# What is drawn on white, and the page's variable that takes its place.
INK, _MUTED, _LINE, ACCENT, BOUND, _CARD = "#1b1f24", "#59626e", "#d5dae1", "#1f5fbf", "#b42318", "#ffffff"
_VARIABLES = {
    INK: "--ink", _MUTED: "--muted", _LINE: "--line", ACCENT: "--accent", BOUND: "--bad", _CARD: "--card",
}  # fmt: skip
_BEHIND_TEXT = {"boxstyle": "square,pad=0.15", "facecolor": _CARD, "edgecolor": "none", "alpha": 0.85}
STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "text.color": INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlperf_exp",
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


_last: dict[bytes, list[Chart]] = {}


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: ``name`` is its file's stem; ``caption`` says in words what the picture shows."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def draw(
    series: Series, bounds: Mapping[str, float | None], phases: Sequence[tuple[str, float]], total_s: float | None
) -> list[Chart]:
    """All charts for which there is something to draw; ``bounds`` in ms by ttft, tpot and latency.

    What was drawn last is kept: a run's report is made twice, and between the two only its phases change.
    """
    key = hashlib.sha256(pickle.dumps((series, sorted(bounds.items())))).digest()
    if key not in _last:
        _last.clear()
        _last[key] = _of_series(series, bounds)
    with mpl.rc_context(STYLE):
        return [*_last[key], *([_phases(phases, total_s)] if phases else [])]


def _of_series(series: Series, bounds: Mapping[str, float | None]) -> list[Chart]:
    charts = []
    with mpl.rc_context(STYLE):
        for key, label in (("ttft", "Time to first token"), ("tpot", "Time per output token"), ("latency", "Latency")):
            if key in series.distributions:
                charts.append(_distribution(key, label, series.distributions[key], bounds.get(key)))
        if series.rate is not None:
            charts.append(_throughput(series.rate))
        if series.flight is not None:
            charts.append(_in_flight(series.flight))
    return charts


def knee(points: Sequence[tuple[float, float, bool]], bound: float | None, label: str) -> Chart:
    """Latency at p99 (ms) against the rate (queries/s) of a search's probes; each says whether it was valid."""
    with mpl.rc_context(STYLE):
        picture, axes = blank()
        ordered = sorted(points)
        axes.plot([rate for rate, _, _ in ordered], [ms for _, ms, _ in ordered], color=_LINE, zorder=1)
        for valid, colour, marker, name in ((True, ACCENT, "o", "valid"), (False, BOUND, "x", "not valid")):
            chosen = [(rate, ms) for rate, ms, good in ordered if good is valid]
            if chosen:
                axes.plot(*zip(*chosen, strict=True), marker, color=colour, markersize=6, label=name, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlabel="Offered rate (queries/s)", ylabel=f"{label} p99 (ms)")
        words = f"{label} at p99 against the rate, {len(ordered)} tests"
        if bound is not None:
            axes.axhline(bound, color=BOUND, linestyle=(0, (5, 3)), linewidth=1.4)
            words += f"; bound {figure(bound, 'ms')} (dashed)"
        axes.legend(frameon=False, loc="upper left")
        return finish("knee", "Latency against rate", f"{words}. Logarithmic axes.", picture)


def _distribution(key: str, label: str, data: Distribution, bound: float | None) -> Chart:
    picture, axes = blank()
    low, high = float(data.ms[0]), float(data.ms[-1])
    farthest = high if bound is None else max(high, bound)
    logarithmic = low > 0 and farthest / low > 20
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, farthest * 1.6)
    else:
        axes.set_xlim(0, farthest * 1.12 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.plot([low, *data.ms], [0, *data.percent], color=ACCENT, drawstyle="steps-post")
    axes.set(ylim=(0, 104), xlabel=f"{label} (ms)", ylabel="Queries done within it (%)")
    for percent, value, marker in ((50, data.p50, "o"), (99, data.p99, "s")):
        axes.plot([value], [percent], marker, color=INK, markersize=5, zorder=5)
        left = _share(axes, value) > 0.72
        axes.annotate(f"p{percent}  {figure(value, 'ms')}", (value, percent), xytext=(-8 if left else 8, -11),
                      textcoords="offset points", ha="right" if left else "left", fontweight="bold",
                      bbox=_BEHIND_TEXT)  # fmt: skip
    words = f"{data.count:,} queries: p50 {figure(data.p50, 'ms')}, p99 {figure(data.p99, 'ms')}"
    if bound is not None:
        axes.axvline(bound, color=BOUND, linestyle=(0, (5, 3)), linewidth=1.4)
        left = _share(axes, bound) > 0.5
        axes.annotate(f"p99 bound {figure(bound, 'ms')}", (bound, 22), xytext=(-6 if left else 6, 0), color=BOUND,
                      textcoords="offset points", ha="right" if left else "left", fontweight="bold")  # fmt: skip
        words += f"; bound at p99 {figure(bound, 'ms')}"
    return finish(key, f"{label}: distribution", f"{words}.{' Logarithmic time axis.' if logarithmic else ''}", picture)


def _throughput(rate: Rate) -> Chart:
    picture = Figure(figsize=(5.2, 3.9), layout="constrained")
    both = picture.subplots(2, 1, sharex=True)
    length = float(rate.edges_s[-1])
    means = []
    for axes, values, unit in (
        (both[0], rate.tokens_per_second, "tokens/s"),
        (both[1], rate.queries_per_second, "queries/s"),
    ):
        mean = float((values * np.diff(rate.edges_s)).sum() / length)
        means.append(figure(mean, unit))
        _stairs(axes, rate.edges_s, values)
        axes.axhline(mean, color=INK, linestyle=(0, (2, 2)), linewidth=1)
        axes.set(ylabel=unit, xlim=(0, length))
        axes.set_ylim(0, (float(np.max(values)) or 1.0) * 1.25)
        axes.annotate(f"mean {figure(mean, unit)}", (1, 0.98), xycoords="axes fraction", ha="right", va="top")
        axes.yaxis.set_major_locator(MaxNLocator(4))
    both[1].set_xlabel("Time since the first query (s)")
    picture.align_ylabels()
    width = figure(float(np.median(np.diff(rate.edges_s))), "s")
    caption = (
        f"Completed in bins of {width}: mean {means[0]} and {means[1]} (dashed). "
        "A query's tokens count when the query completes."
    )
    return finish("throughput", "Throughput over time", caption, picture)


def _in_flight(flight: Flight) -> Chart:
    picture, axes = blank()
    _stairs(axes, flight.edges_s, flight.peak)
    top = float(np.max(flight.peak))
    axes.set(xlim=(0, float(flight.edges_s[-1])), ylim=(0, (top or 1) * 1.1),
             xlabel="Time since the first query (s)", ylabel="Queries in flight")  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return finish("in_flight", "Queries in flight", f"The most in each bin of time; at most {top:,.0f}.", picture)


def _phases(phases: Sequence[tuple[str, float]], total_s: float | None) -> Chart:
    """A bar a phase, each beginning where the one before ended."""
    rows = list(phases)
    end = max(total_s or 0.0, sum(seconds for _, seconds in rows)) or 1.0
    picture = Figure(figsize=(5.2, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = picture.subplots()
    start = 0.0
    for row, (name, seconds) in enumerate(rows):
        colour = _MUTED if name == BETWEEN else ACCENT
        axes.barh(row, max(seconds, end * 0.002), left=start, height=0.62, color=colour)
        # Beside the bar where there is room, inside a long one, before a short one at the far end.
        beside, inside = start + seconds < 0.78 * end, seconds > 0.3 * end
        axes.annotate(duration(seconds), (start + seconds if beside or inside else start, row),
                      xytext=(4 if beside else -4, 0), textcoords="offset points", va="center",
                      ha="left" if beside else "right", color=INK if beside or not inside else _CARD)  # fmt: skip
        start += seconds
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, end * 1.02), xlabel="Time since the start of the run (s)")
    longest = max(rows, key=lambda row: row[1])
    whole = f"{duration(total_s)} in all; " if total_s is not None else "The whole wall time is not known; "
    caption = f"{whole}the longest is {longest[0].lower()} with {duration(longest[1])}."
    return finish("phases", "Where the time went", caption, picture)


def _tick(value: float, _: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def blank() -> tuple[Figure, Any]:
    """An empty picture with one pair of axes."""
    picture = Figure(figsize=(5.2, 3.0), layout="constrained")
    return picture, picture.subplots()


def _stairs(axes: Any, edges: Floats, values: Floats) -> None:
    axes.stairs(values, edges, fill=True, color=ACCENT, alpha=0.16)
    axes.stairs(values, edges, color=ACCENT, linewidth=1.3)


def _share(axes: Any, x: float) -> float:
    """Where ``x`` lies on the axis, from 0 (left) to 1 (right)."""
    return float(axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0])


def finish(name: str, title: str, caption: str, picture: Figure) -> Chart:
    """The picture as a chart, in both forms."""
    for axes in picture.axes:
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        if name != "phases":  # its rows have names
            axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    picture.draw_without_rendering()
    picture.set_layout_engine("none")  # it stays as laid out now, and need not be laid out for each format
    png, svg = io.BytesIO(), io.BytesIO()
    picture.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    picture.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(name, title, caption, _inline(svg.getvalue(), name, f"{title}. {caption}"), png.getvalue())


def _inline(svg: bytes, name: str, label: str) -> str:
    """matplotlib's SVG file as an element of a page: scalable, named, its ids unique, its colours variables."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):  # its one rule would hold for the whole page
                parent.remove(child)
            else:
                child.tail = None  # indentation
                if child.tag != f"{_SVG}text":
                    child.text = None
    used = set(re.findall(r"#([A-Za-z_][\w.-]*)", svg.decode()))
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            element.set(key, _attribute(key, value, name))
        if element.get("id", "").removeprefix(f"{name}-") not in used:
            element.attrib.pop("id", None)  # matplotlib names every group
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        element.tag = element.tag.removeprefix(_SVG)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.text = None
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == _LINK:
        return value.replace("#", f"#{name}-")
    value = value.replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var({variable})")
    return value.replace("'DejaVu Sans'", "var(--sans)")
