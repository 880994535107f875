"""Measurement -> Verdict for training: one sentence for each of MLPerf's rules that the run does not keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlperf_exp.compliance import rules as compliance
from mlperf_exp.config import Division, Training
from mlperf_exp.messages import Measurement, Plan, Verdict
from mlperf_exp.train.rules import benchmark, power_of_two_times


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
    elif not value >= rules.target:
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
    facts = measurement.training
    for key, wanted in (("train_samples", known.train_samples), ("eval_samples", known.eval_samples)):
        if facts.get(key, wanted) != wanted:
            yield f"The data set has {facts[key]:,} {key.replace('_', ' ')}, the benchmark's {wanted:,}: use the whole."
    if rules.target is not None and rules.target < known.target:
        yield f"scenario.target={rules.target:g} is below MLPerf's {known.target:g}: leave it out."
    for key, allowed, words in (
        ("label_smoothing", rules.label_smoothing in (0.0, 0.1), "0 or 0.1"),
        ("end_lr", rules.end_lr == 1e-4, "0.0001"),
        ("decay_power", rules.decay_power == 2.0, "2"),
        ("weight_decay", power_of_two_times(rules.weight_decay or 0.0, 1e-4), "0.0001 times a power of two"),
        ("eval_period", rules.eval_period == known.eval_period, f"{known.eval_period}"),
        ("eval_offset", 1 <= (rules.eval_offset or 0) <= known.eval_period, f"1 to {known.eval_period}"),
        ("crop_min_area", rules.crop_min_area == 0.08, "0.08"),
        ("flip", rules.flip, "true"),
    ):
        if not allowed:
            yield f"scenario.{key}={getattr(rules, key)} is not the closed division's: it wants {words}."
    if (config.model.image_size, config.model.resize) != (224, 256):
        yield f"The closed division trains on images of 224 pixels, not {config.model.image_size}."


def _accuracy(plan: Plan, measurement: Measurement) -> dict[str, Any]:
    score, target = measurement.score, plan.config.scenario.target
    if score is None:
        return {"measured": False, "passed": None}
    ((name, value),) = score.metrics.items()
    facts: dict[str, Any] = {"measured": True, "samples": score.samples, name: value, "notes": list(score.notes)}
    targets = None if target is None else {"samples": score.samples, "minimum": {name: target}, "maximum": {}}
    return facts | {"passed": None if target is None else value >= target, "targets": targets}


def _notes(plan: Plan) -> Iterator[str]:
    known = benchmark(plan.config.model)
    if known is not None and plan.config.division is Division.closed:
        yield (
            f"One run of the {known.runs} that make a result, of which the fastest and the slowest do not count: "
            "python -m mlperf_exp -m seed=1,2,3,4,5 ... makes them, python -m mlperf_exp.train.summary sums them up."
        )
        yield f"MLPerf accepted this benchmark last in training {known.ruleset}."
