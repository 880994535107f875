"""The charts of a training: loss, the evaluated metric, throughput, each over time or epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from mlperf_exp.accuracy import figure as named
from mlperf_exp.report.charts import ACCENT, BOUND, INK, STYLE, Chart, blank, finish
from mlperf_exp.report.text import figure
from mlperf_exp.train.progress_log import Evaluated, History, Line

_POINTS = 400


def draw(history: History, target: float | None) -> Iterator[Chart]:
    """All for which there is something to draw."""
    with mpl.rc_context(STYLE):
        if history.lines:
            yield _loss(history.lines)
        if history.evaluations:
            yield _metric(history.evaluations, target)
        if history.lines:
            yield _throughput(history.lines, history.evaluations)


def _loss(lines: Sequence[Line]) -> Chart:
    picture, axes = blank()
    some = thinned(lines)
    axes.plot([line.epoch for line in some], [line.loss for line in some], color=ACCENT)
    axes.set(xlabel="Epoch", ylabel="Training loss")
    rate = axes.twinx()
    rate.grid(visible=False)
    rate.plot([line.epoch for line in some], [line.learning_rate for line in some], color=INK, linestyle=(0, (2, 2)))
    rate.set_ylabel("Learning rate (dotted)")
    rate.spines["right"].set_visible(True)
    said = f"From {figure(lines[0].loss)} to {figure(lines[-1].loss)} over {figure(lines[-1].epoch)} epochs"
    return finish("loss", "Training loss", f"{said}; learning rate dotted.", picture)


def _metric(evaluations: Sequence[Evaluated], target: float | None) -> Chart:
    picture, axes = blank()
    label = named(evaluations[-1].metric).label
    minutes = [it.run_s / 60 for it in evaluations]
    values = [it.value for it in evaluations]
    axes.plot(minutes, values, "o-", color=ACCENT, markersize=4)
    axes.set(xlabel="Minutes since run_start", ylabel=label)
    axes.set_xlim(0, max(minutes) * 1.05 or 1)
    words = f"{len(values)} evaluations, the last {figure(values[-1])} after {figure(evaluations[-1].epoch)} epochs"
    if target is not None:
        axes.axhline(target, color=BOUND, linestyle=(0, (5, 3)), linewidth=1.4)
        words += f"; target {target:g} (dashed)"
    return finish("evaluations", label, f"{words}.", picture)


def _throughput(lines: Sequence[Line], evaluations: Sequence[Evaluated]) -> Chart:
    picture, axes = blank()
    start = min(line.at - line.seconds for line in lines)
    some = thinned(lines)
    seconds = [line.at - start for line in some]
    axes.plot(seconds, [line.samples_per_second for line in some], color=ACCENT)
    for it in evaluations:
        axes.axvspan(it.at - it.eval_s - start, it.at - start, color=INK, alpha=0.12, linewidth=0)
    median = float(np.median([line.samples_per_second for line in lines]))
    axes.axhline(median, color=INK, linestyle=(0, (2, 2)), linewidth=1)
    axes.set(xlabel="Seconds since the first step", ylabel="Samples/s", xlim=(0, max(seconds) * 1.02 or 1))
    axes.set_ylim(0, max(line.samples_per_second for line in lines) * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    waited = max(line.waited_share for line in lines)
    caption = (
        f"Median {figure(median, 'samples/s')} (dashed); evaluations shaded; at most {100 * waited:.0f} % of a line's "
        "time spent waiting for data."
    )
    return finish("training_throughput", "Training throughput over time", caption, picture)


def thinned(lines: Sequence[Any]) -> list[Any]:
    """At most some hundred of them, evenly, the last included."""
    step = -(-len(lines) // _POINTS)
    return [*lines[:-1:step], lines[-1]]
