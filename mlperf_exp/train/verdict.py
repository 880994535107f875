"""Measurement -> Verdict for training: one sentence for each of MLPerf's rules that the run does not keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlperf_exp.compliance import rules as compliance
from mlperf_exp.config import Division, Training
from mlperf_exp.messages import Measurement, Plan, Verdict
from mlperf_exp.train import kind
from mlperf_exp.train.rules import benchmark, lower_is_better, reaches


def judge_training(plan: Plan, measurement: Measurement) -> Verdict:
    """Decide whether the run is valid; one that did not reach its target on real data never is."""
    reasons = [
        *_broken(measurement),
        *_data(plan),
        *_target(plan, measurement),
        *_whole(measurement),
        *(reason for test in measurement.compliance for reason in compliance.failed(test)),
        *(_closed(plan, measurement) if plan.config.division is Division.closed else ()),
    ]
    return Verdict(
        valid=not reasons,
        reasons=tuple(reasons),
        accuracy=_accuracy(plan, measurement),
        compliance=compliance.facts(measurement),
        warnings=(*plan.warnings, *measurement.warnings, *_notes(plan)),
    )


def _broken(measurement: Measurement) -> Iterator[str]:
    if measurement.failure:
        yield f"The run did not come to its end: {measurement.failure}."


def _data(plan: Plan) -> Iterator[str]:
    rules: Training = plan.config.scenario
    if plan.config.dataset.synthetic:
        yield "The samples are random, good for speed only: use the benchmark's data set."
    if rules.steps is not None:
        yield f"The run was to end after {rules.steps:,} steps, good for speed only: leave out scenario.steps."


def _target(plan: Plan, measurement: Measurement) -> Iterator[str]:
    rules, score = plan.config.scenario, measurement.score
    if score is None:
        yield "Accuracy was not measured, and a run without it is never valid."
        return
    ((name, value),) = score.metrics.items()
    if rules.target is None:
        yield f"There was no target to reach ({name} is {value:.2f}): give one with scenario.target."
    elif not reaches(name, value, rules.target):
        epochs = measurement.metrics.get("epochs", 0.0)
        yield (
            f"The target was not reached: {name} {value:.2f} after {epochs:.4g} epochs, wanted {rules.target:g}; train "
            "longer (scenario.max_epochs) or with other hyperparameters."
        )


def _whole(measurement: Measurement) -> Iterator[str]:
    first = measurement.training.get("first_step", 0)
    if first:
        yield (
            f"The run went on from a checkpoint at step {first:,}, so that its time is not that of a whole training: "
            "it counts for its weights, not for MLPerf."
        )


def _closed(plan: Plan, measurement: Measurement) -> Iterator[str]:
    config = plan.config
    rules: Training = config.scenario
    known = benchmark(config.model)
    if known is None:
        yield f"{config.model.name} is no benchmark of MLPerf Training: run it with division=open."
        return
    if rules.target is not None and not reaches(known.metric, rules.target, known.target):
        side = "above" if lower_is_better(known.metric) else "below"
        yield f"scenario.target={rules.target:g} is {side} MLPerf's {known.target:g}: leave it out."
    yield from kind.of(config.model).closed(plan, known, measurement.training)


def _accuracy(plan: Plan, measurement: Measurement) -> dict[str, Any]:
    score, target = measurement.score, plan.config.scenario.target
    if score is None:
        return {"measured": False, "passed": None}
    ((name, value),) = score.metrics.items()
    facts: dict[str, Any] = {"measured": True, "samples": score.samples, name: value, "notes": list(score.notes)}
    if target is None:
        return facts | {"passed": None, "targets": None}
    bounds: dict[str, Any] = {"minimum": {}, "maximum": {}}
    bounds["maximum" if lower_is_better(name) else "minimum"][name] = target
    return facts | {"passed": reaches(name, value, target), "targets": {"samples": score.samples, **bounds}}


def _notes(plan: Plan) -> Iterator[str]:
    known = benchmark(plan.config.model)
    if known is not None and plan.config.division is Division.closed:
        seeds = ",".join(str(seed) for seed in range(1, known.runs + 1))
        yield (
            f"One run of the {known.runs} that make a result, of which the fastest and the slowest do not count: "
            f"python -m mlperf_exp -m seed={seeds} ... makes them, python -m mlperf_exp.train.summary sums them up."
        )
        if known.retired:
            yield f"MLPerf accepted this benchmark last in training {known.ruleset}."
