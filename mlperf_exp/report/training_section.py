"""The section on a training: loss, accuracy and throughput over time, evaluations, what whole trainings would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report import training_charts
from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import duration, figure, number, plain
from mlperf_exp.report.view import items, part, trained
from mlperf_exp.train.hyperparameters import LARS, reference
from mlperf_exp.train.progress_log import FILE, read
from mlperf_exp.train.text.reference import reference as text_reference

_PROMISED = (15_000.0, 25_000.0)  # img/s on sixteen H100s, "10 minutes": the article that this project began with


def section(result: Mapping[str, Any], run_dir: Path) -> Section | None:
    """None for a run that was no training."""
    if not trained(result):
        return None
    record = part(result, "training")
    history = read(run_dir / "train" / FILE)
    target = number(part(result, "plan", "config", "scenario").get("target"))
    notes = [] if history.lines else ["No step was logged: there are no curves."]
    if history.lives > 1:
        notes.append(f"The run was started {history.lives} times; the curves go on from the checkpoint each time.")
    return Section(
        "training",
        "Training",
        paragraphs=tuple(_said(result, record)),
        bullets=tuple(_projections(result)),
        charts=tuple(training_charts.draw(history, target)),
        tables=tuple(_tables(record)),
        notes=tuple(notes),
    )


def _said(result: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    metrics = part(result, "metrics")
    epochs = figure(metrics.get("epochs"))
    how = {
        "reached": f"The target was reached after {epochs} epochs, in {_minutes(metrics)} from run_start to run_stop.",
        "missed": f"The target was not reached in {epochs} epochs.",
        "stopped": f"The training was asked to end after {epochs} epochs.",
        "speed": f"{epochs} epochs were made for speed only, without evaluation.",
    }.get(str(record.get("status")), "The training did not come to its end.")
    batch, ranks = number(record.get("global_batch_size")), number(record.get("ranks"))
    if batch is not None and ranks is not None:
        share = part(result, "plan", "engine")
        how += f" A step takes {batch:,.0f} samples: {ranks:,.0f} processes, {_share(share)}."
    yield how


def _minutes(metrics: Mapping[str, Any]) -> str:
    minutes = number(metrics.get("time_to_train_minutes"))
    return duration(None if minutes is None else 60 * minutes)


def _share(settings: Mapping[str, Any]) -> str:
    several = number(settings.get("accumulation")) or 1
    times = f", {several:.0f} times" if several > 1 else ""
    return f"{figure(settings.get('micro_batch'))} at once{times}"


def _tables(record: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (
            figure(one.get("epoch")),
            figure(one.get("step")),
            *(figure(one.get(name)) for name in _metric(one)),
            duration(one.get("eval_s")),
            duration(one.get("run_s")),
        )
        for one in items(record.get("evaluations"))
        if isinstance(one, Mapping)
    ]
    if rows:
        names = _metric(next(one for one in items(record.get("evaluations")) if isinstance(one, Mapping)))
        titles = ("Epoch", "Step", *(plain(name, 40) for name in names), "Evaluation took", "Since run_start")
        yield Table(titles, tuple(rows), right=tuple(range(len(titles))), title=f"{len(rows)} evaluations")


def _metric(one: Mapping[str, Any]) -> list[str]:
    return [name for name in one if name not in ("epoch", "step", "eval_s", "run_s")][:1]


def _projections(result: Mapping[str, Any]) -> Iterator[str]:
    """What this rate makes of the training that the reference takes, for MLPerf's benchmarks."""
    record, metrics = part(result, "training"), part(result, "metrics")
    name, batch = part(result, "plan", "config", "model").get("name"), number(record.get("global_batch_size"))
    samples, rate = number(record.get("train_samples")), number(metrics.get("train_samples_per_second"))
    if batch is not None and samples and name == "resnet50":
        yield from _resnet50(batch, samples, rate)
    if batch is not None and rate and name == "llama3_8b_pretrain":
        text, why = text_reference(round(batch))
        yield (
            f"At {figure(rate, 'sequences/s')} the {text.samples:,.0f} sequences that the reference takes ({why}) last "
            f"{duration(text.samples / rate)}, without evaluation."
        )


def _resnet50(batch: float, samples: float, rate: float | None) -> Iterator[str]:
    """On ImageNet: what this rate, and the promised one, make of the reference's number of epochs."""
    point, why = reference(round(batch))
    epochs = point.epochs
    if rate:
        seconds = epochs * samples / rate
        yield (
            f"At {figure(rate, 'img/s')} the {epochs:.1f} epochs that the reference takes ({why}) last "
            f"{duration(seconds)}, without evaluation."
        )
    least = LARS[0].epochs
    slow, fast = (least * samples / promised / 60 for promised in _PROMISED)
    needed = least * samples / 600
    yield (
        f"Promised for sixteen H100s were {_PROMISED[0]:,.0f} to {_PROMISED[1]:,.0f} img/s and ten minutes. At those "
        f"rates {least:.0f} epochs, the fewest that reach the target, take {fast:.0f} to {slow:.0f} minutes; ten "
        f"minutes need {needed:,.0f} img/s. MLPerf's own record of sixteen H100s is 100,346 img/s and 7.9 minutes."
    )
