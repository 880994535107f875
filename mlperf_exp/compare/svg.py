"""Charts as SVG made by hand: text that can be selected, marks that know their run, colours by the page's variables.

A drawing is 460 wide; a page scales it. Marks carry ``data-r`` (the place of their runs in the table), which the page's
script dims where a filter leaves them out. A series has a colour and a shape, so that no colour is needed to tell it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mlperf_exp.report.text import figure

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 44
_SHAPES = 6


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: ``title`` is shown on hovering; ``low`` and ``high`` are its interval in y."""

    x: float
    y: float
    title: str
    runs: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind; ``line`` joins them in their order."""

    name: str
    marks: tuple[Mark, ...]
    line: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart; ``parts`` are stacked from zero: (value, which of the legend)."""

    label: str
    parts: tuple[tuple[float, int], ...]
    text: str
    title: str = ""
    runs: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """A figure along an edge; ``log`` needs positive values."""

    label: str
    low: float
    high: float
    log: bool = False

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two places on the page."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return start + share * (end - start)

    def ticks(self) -> list[float]:
        """Round values inside the axis."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def axis(label: str, values: Sequence[float], *, zero: bool = False, may_log: bool = False) -> Axis:
    """An axis that holds all ``values``: logarithmic where they span more than a factor of 30, if it may be."""
    low, high = min(values), max(values)
    if may_log and low > 0 and high / low > 30:
        return Axis(label, low / 1.25, high * 1.25, log=True)
    if zero or low < 0.6 * high:
        low = min(0.0, low)
        return Axis(label, low, (high - low) * 1.08 + low or 1.0)
    room = (high - low or abs(high) or 1.0) * 0.12
    return Axis(label, max(0.0, low - room) if low >= 0 else low - room, high + room)


def plot(x: Axis, y: Axis, series: Sequence[Series], name: str, bounds: Sequence[tuple[float, str]] = (),
         verticals: Sequence[tuple[float, str]] = ()) -> Markup:  # fmt: skip
    """Points and lines; ``bounds`` are horizontal lines at y with words, ``verticals`` the same at x."""
    px: Callable[[float], float] = lambda v: x.at(v, _LEFT, WIDTH - _RIGHT)  # noqa: E731
    py: Callable[[float], float] = lambda v: y.at(v, HEIGHT - _BOTTOM, _TOP)  # noqa: E731
    parts = [_frame(x, y, px, py)]
    above: list[Markup] = []
    for value, words in bounds:
        if y.low <= value <= y.high:
            parts.append(_segment(_LEFT, py(value), WIDTH - _RIGHT, py(value), "bound"))
            above.append(_text(_LEFT + 6, py(value) - 5, words, "boundword"))
    for value, words in verticals:
        if x.low <= value <= x.high:
            parts.append(_segment(px(value), _TOP, px(value), HEIGHT - _BOTTOM, "kneeline"))
            side = "end" if px(value) > WIDTH / 2 else "start"
            parts.append(_text(px(value) + (-5 if side == "end" else 5), _TOP + 11, words, f"{side} kneeword"))
    for number, one in reversed(list(enumerate(series))):  # the first lies on top
        kind = f"s{number % _SHAPES}"
        if one.line and len(one.marks) > 1:
            path = " ".join(f"{px(m.x):.1f},{py(m.y):.1f}" for m in one.marks)
            parts.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, path))
        for mark in one.marks:
            if mark.low is not None and mark.high is not None:
                low, high = (py(min(max(v, y.low), y.high)) for v in (mark.low, mark.high))
                parts.append(_segment(px(mark.x), low, px(mark.x), high, f"whisker {kind}"))
            parts.append(_mark(px(mark.x), py(mark.y), number % _SHAPES, mark))
    return _svg([*parts, *above], HEIGHT, name)


def bars(rows: Sequence[Bar], label: str, name: str, kinds: int = 1) -> Markup:
    """Horizontal bars that begin at zero, each under its label; ``kinds`` parts in a stacked one."""
    row, top = 38, 6
    height = top + row * len(rows) + 40
    most = max(max(sum(v for v, _ in bar.parts), bar.high or 0.0) for bar in rows) or 1.0
    longest = max(len(bar.text) for bar in rows)
    end = WIDTH - 12 - 6.6 * longest
    x = Axis(label, 0.0, most * 1.02)
    px: Callable[[float], float] = lambda v: x.at(v, 6, end)  # noqa: E731
    parts: list[Markup] = []
    foot = top + row * len(rows)
    for tick in x.ticks():
        parts.append(_segment(px(tick), top, px(tick), foot, "grid"))
        parts.append(_text(px(tick), foot + 14, _short(tick), "middle tick"))
    parts.append(_text((6 + end) / 2, foot + 32, label, "middle"))
    for index, bar in enumerate(rows):
        y = top + row * index
        group = [_text(6, y + 12, _clip(bar.label, 64), "start rowname")]
        at = 0.0
        for value, kind in bar.parts:
            left, right = px(at), px(at + value)
            which = f"s{kind % _SHAPES}" if kinds > 1 else "s0"
            dense = " light" if kinds > 1 and kind >= _SHAPES else ""
            group.append(Markup('<rect class="bar {}{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="15"/>').format(
                which, dense, left, y + 17, max(right - left, 0.5)))  # fmt: skip
            at += value
        far = px(at)
        if bar.low is not None and bar.high is not None:
            low, far_high = px(max(0.0, bar.low)), px(bar.high)
            group += [_segment(low, y + 24.5, far_high, y + 24.5, "ci"), _segment(low, y + 20, low, y + 29, "ci"),
                      _segment(far_high, y + 20, far_high, y + 29, "ci")]  # fmt: skip
            far = max(far, far_high)
        group.append(_text(far + 6, y + 29, bar.text, "start value"))
        parts.append(_group(group, bar.title or bar.label, bar.runs))
    parts.append(_segment(6, top, 6, foot, "axis"))
    return _svg(parts, height, name)


def shape(number: int) -> Markup:
    """A series' mark for a legend."""
    body = _mark(8, 8, number % _SHAPES, None)
    return Markup('<svg class="key" viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(body)


def _frame(x: Axis, y: Axis, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    parts = []
    last = -math.inf
    for tick in x.ticks():
        parts.append(_segment(px(tick), _TOP, px(tick), HEIGHT - _BOTTOM, "grid"))
        if px(tick) - last >= 6.5 * len(_short(tick)) + 6:  # labels that would touch are left out
            parts.append(_text(px(tick), HEIGHT - _BOTTOM + 15, _short(tick), "middle tick"))
            last = px(tick)
    last = math.inf
    for tick in y.ticks():
        parts.append(_segment(_LEFT, py(tick), WIDTH - _RIGHT, py(tick), "grid"))
        if last - py(tick) >= 14:
            parts.append(_text(_LEFT - 6, py(tick) + 4, _short(tick), "end tick"))
            last = py(tick)
    parts.append(_segment(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, "axis"))
    parts.append(_segment(_LEFT, _TOP, _LEFT, HEIGHT - _BOTTOM, "axis"))
    words = f"{x.label}, logarithmic" if x.log else x.label
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, words, "middle"))
    words = f"{y.label}, logarithmic" if y.log else y.label
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        Markup('<text class="middle" transform="translate(13 {:.1f}) rotate(-90)">{}</text>').format(middle, words)
    )
    return Markup("").join(parts)


def _mark(x: float, y: float, number: int, mark: Mark | None) -> Markup:
    forms = (
        Markup('<circle cx="{x}" cy="{y}" r="4.6"/>'),
        Markup('<path d="M{x} {y}m-4.4 -4.4h8.8v8.8h-8.8z"/>'),
        Markup('<path d="M{x} {y}m0 -5.6l5.4 9.6h-10.8z"/>'),
        Markup('<path d="M{x} {y}m0 -6l6 6l-6 6l-6 -6z"/>'),
        Markup('<path d="M{x} {y}m0 5.6l5.4 -9.6h-10.8z"/>'),
        Markup('<path d="M{x} {y}m-1.7 -5.2h3.4v3.5h3.5v3.4h-3.5v3.5h-3.4v-3.5h-3.5v-3.4h3.5z"/>'),
    )
    form = forms[number].format(x=f"{x:.1f}", y=f"{y:.1f}")
    if mark is None:
        return Markup('<g class="mark s{}">{}</g>').format(number, form)
    return _group([form], mark.title, mark.runs, f"mark s{number}")


def _group(parts: Sequence[Markup], title: str, runs: tuple[int, ...], kind: str = "row") -> Markup:
    return Markup('<g class="{}" data-r="{}"><title>{}</title>{}</g>').format(
        kind, " ".join(map(str, runs)), title, Markup("").join(parts)
    )


def _svg(parts: Sequence[Markup], height: float, name: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, name, Markup("").join(parts)
    )


def _segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, words: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, escape(words))


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        return f"{value / 1000:,.6g}k"
    return f"{value:,.6g}"


def _clip(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = (1, 2, 5) if high / low < 3000 else (1,)
    return [m * 10.0**d for d in decades for m in fine if low <= m * 10.0**d <= high]


def tooltip(label: str, *figures: tuple[str, float | None, str]) -> str:
    """The words of a mark's title: its label, then (name, value, unit) a line."""
    lines = [f"{name}: {figure(value, unit)}" for name, value, unit in figures if value is not None]
    return "\n".join([label, *lines])
