"""Measurement -> Verdict: each reason against validity is one sentence with the figure, the bound and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlperf_exp import log_rules
from mlperf_exp.accuracy import figure
from mlperf_exp.benchmarks import BENCHMARKS, MIN_DURATION_S, bounds_ms
from mlperf_exp.client import bottleneck, dominant
from mlperf_exp.compliance import rules as compliance
from mlperf_exp.config import (
    AccuracyTarget,
    Decoder,
    Division,
    OpenaiBackend,
    Scenario,
    SimulatedBackend,
    Weights,
)
from mlperf_exp.messages import Measurement, Plan, Score, Test, Verdict

ARRIVALS = (Scenario.server, Scenario.interactive)
BOUNDED = {"ttft": "TTFT", "tpot": "TPOT", "latency": "latency"}  # what a scenario may bound, and how it is called


def judge(plan: Plan, measurement: Measurement) -> Verdict:
    """Decide whether the run is valid by MLPerf's rules; a run that measured no accuracy never is."""
    tests = {test.mode: test for test in measurement.tests}
    performance = list(_performance(plan, measurement, tests.get("performance")))
    for number, again in enumerate(measurement.repeats, 2):
        performance += [f"Repetition {number}: {reason}" for reason in _performance(plan, again, again.tests[0])]
    harness = bottleneck(measurement.metrics)
    blamed = harness is not None and _late(plan, measurement) and dominant(measurement.metrics)
    accuracy, accuracy_reasons = _accuracy(plan, measurement)
    reasons = [
        *_broken(measurement),
        *_system(plan),
        *_replicas(measurement),
        *performance,
        *((harness,) if harness and blamed else ()),
        *log_rules.reasons(plan, measurement),
        *_load(plan),
        *accuracy_reasons,
        *_division(plan),
        *compliance.reasons(plan, measurement),
    ]
    notes = measurement.score.notes if measurement.score else ()
    missed = [reason for reason in accuracy.get("missed", ()) if reason not in reasons]
    return Verdict(
        valid=not reasons,
        reasons=tuple(reasons),
        accuracy=accuracy,
        compliance=compliance.facts(measurement),
        warnings=(
            *plan.warnings,
            *measurement.warnings,
            *((harness,) if harness and not blamed else ()),
            *_taken_over(measurement),
            *notes,
            *missed,
        ),
    )


def _broken(measurement: Measurement) -> Iterator[str]:
    if measurement.failure:
        yield f"The run did not come to its end: {measurement.failure}."


def _system(plan: Plan) -> Iterator[str]:
    if isinstance(plan.config.backend, SimulatedBackend):
        yield "The system is simulated: its figures are the harness's only; use backend=vllm or backend=openai."
    elif plan.config.model.weights is Weights.dummy:
        yield "The weights are dummies, good for speed only: give the real ones with model.path."


def _replicas(measurement: Measurement) -> Iterator[str]:
    measured = (measurement.metrics, measurement.repeated, *(again.metrics for again in measurement.repeats))
    lost = max(metrics.get("replicas_lost", 0.0) for metrics in measured)
    if lost:
        retried = max(metrics.get("retried", 0.0) for metrics in measured)
        again = f", and {retried:,.0f} queries were asked again of others" if retried else ""
        yield (
            f"{lost:,.0f} of {measurement.metrics.get('replicas', lost):,.0f} replicas were lost on the way{again}: "
            "the system that ended is not the one that began."
        )


def _late(plan: Plan, measurement: Measurement) -> bool:
    bounds = {name: getattr(plan.config.scenario, f"{name}_ms") for name in BOUNDED}
    return any(bound and measurement.metrics.get(f"{name}_p99_ms", 0.0) > bound for name, bound in bounds.items())


def _performance(plan: Plan, measurement: Measurement, test: Test | None) -> Iterator[str]:
    if test is None:
        if "performance" in plan.modes:
            yield "The performance test did not run."
        else:
            yield "No performance was measured: use scenario.mode=both."
        return
    metrics, rules = measurement.metrics, plan.config.scenario
    if test.errors:
        yield f"{test.errors:,} of {test.issued:,} queries ended with an error; the first: {test.first_error}."
    if test.completed + test.errors < test.issued:
        yield f"{test.issued - test.completed - test.errors:,} of {test.issued:,} queries never ended."
    if metrics.get("duplicates"):
        yield f"{metrics['duplicates']:,.0f} queries were completed twice."
    if not test.loadgen.get("result_validity"):
        yield "LoadGen did not come to its end, so there is no word of its own on validity."
    for name, label in BOUNDED.items():
        bound, value = getattr(rules, f"{name}_ms"), metrics.get(f"{name}_p99_ms")
        if bound is not None and value is not None and value > bound:
            now = "" if rules.target_qps is None else f": lower scenario.target_qps (now {rules.target_qps:g})"
            now += f", or run scenario={rules.name.name} search=max_qps" if now and rules.name in ARRIVALS else ""
            yield f"{label[0].upper()}{label[1:]} p99 {value:,.0f} ms is over {bound:,.0f} ms{now}."
        elif bound is not None and value is None:
            yield f"{label[0].upper()}{label[1:]} was not measured, and the scenario bounds it at {bound:,.0f} ms."
    if test.loadgen.get("result_validity") == "INVALID":
        yield f"LoadGen calls the run INVALID: {_loadgen_reasons(test.loadgen)}"
    known = BENCHMARKS.get(plan.config.model.benchmark or "")
    wanted = known.offline_samples if known and plan.config.model.performance_samples else 0
    if rules.name is Scenario.offline and test.issued < wanted:
        yield (
            f"The load was {test.issued:,} samples, MLPerf wants at least {wanted:,} in this scenario: leave out "
            "scenario.min_query_count."
        )
    logged = test.loadgen.get("num_errors", 0)
    if logged and not test.errors:
        first = next((reasons[0] for key, reasons in test.loadgen.items() if key.startswith("error_")), "see its log.")
        yield f"LoadGen logged {logged} errors; the first: {' '.join(str(first).split())}"


def _loadgen_reasons(logged: dict[str, Any]) -> str:
    """LoadGen's own words on an INVALID run, in one line: its reasons, and the early-stopping rules not met."""
    said = [" ".join(str(reason).split()) for reason in logged.get("result_invalid_reason", [])]
    for name, label in (
        ("early_stopping_result", ""),
        ("early_stopping_ttft_result", "TTFT: "),
        ("early_stopping_tpot_result", "TPOT: "),
    ):
        text = " ".join(str(logged.get(name, "")).replace("*", " ").split())
        if "unsuccessful" in text:
            said.append(label + text)
    words = " ".join(reason if reason.endswith(".") else reason + "." for reason in said if reason)
    return words or "it gives no reason."


def _load(plan: Plan) -> Iterator[str]:
    """Whether the load itself is MLPerf's: valid for LoadGen is not yet valid for MLPerf."""
    config = plan.config
    rules = config.scenario
    if rules.min_duration_s < MIN_DURATION_S:
        yield (
            f"A short run: MLPerf wants at least {MIN_DURATION_S:g} s, this one was set to {rules.min_duration_s:g} s; "
            "leave out scenario.min_duration_s."
        )
    wanted = config.model.performance_samples
    drawn = rules.samples or config.dataset.samples
    if wanted and drawn and drawn < wanted:
        yield (
            f"The load drew from {drawn:,} samples, MLPerf wants {wanted:,}: leave out dataset.samples and "
            "scenario.samples."
        )
    if config.dataset.synthetic:
        yield "The samples are synthetic: use the benchmark's data set."
    bounds = bounds_ms(config.model.benchmark, rules.name)
    if any((getattr(rules, f"{name}_ms") or 0) > bound for name, bound in bounds.items()):
        allowed = " and ".join(f"{bound:g} ms ({BOUNDED[name]})" for name, bound in bounds.items())
        yield f"The scenario's bounds are looser than MLPerf's {allowed}."


def _accuracy(plan: Plan, measurement: Measurement) -> tuple[dict[str, Any], list[str]]:
    score, target = measurement.score, plan.config.model.target
    if score is None:
        return {"measured": False, "passed": None}, [
            "Accuracy was not measured, and a run without it is never valid: use scenario.mode=both with real weights."
        ]
    facts: dict[str, Any] = {
        "measured": True, "passed": None, "samples": score.samples, **score.metrics, "notes": list(score.notes)
    }  # fmt: skip
    if measurement.accuracy_from:
        facts["reused"] = measurement.accuracy_from
    if target is None:
        facts["targets"] = None
        return facts, []
    facts["targets"] = {
        "samples": target.samples, "minimum": dict(target.minimum), "maximum": dict(target.maximum)
    }  # fmt: skip
    reasons, missed = list(partial(score, target)), list(misses(score, target))
    facts["passed"] = not reasons and not missed
    if plan.config.division is Division.closed:  # the open division reports accuracy, and need not reach the targets
        reasons += missed
    facts["missed"] = missed
    return facts, reasons


def _taken_over(measurement: Measurement) -> Iterator[str]:
    source = measurement.accuracy_from
    if source:
        yield (
            f"Accuracy was taken over from run {source['run_id']} of {source['measured_at']}, which had the same "
            f"engine ({source['engine_hash']}) and data; accuracy=measure with scenario.mode=both measures it again."
        )


def partial(score: Score, target: AccuracyTarget) -> Iterator[str]:
    """The reason against a score of another number of samples than the benchmark's."""
    if score.samples != target.samples:
        yield (
            f"Accuracy was measured on {score.samples:,} samples, the benchmark has {target.samples:,}: use the whole "
            "data set."
        )


def misses(score: Score, target: AccuracyTarget) -> Iterator[str]:
    """One sentence for each target that a score does not meet; a figure that is no number meets none."""
    for name, least in target.minimum.items():
        value, shown = score.metrics.get(name, float("nan")), figure(name).form
        if not value >= least:
            cause = "check weights, precision and inputs"
            yield f"{name} {value:{shown}} is below MLPerf's minimum of {least:,.10g}: {cause}."
    for name, most in target.maximum.items():
        value, shown = score.metrics.get(name, float("nan")), figure(name).form
        if not value <= most:
            yield f"{name} {value:{shown}} is above MLPerf's maximum of {most:,.10g}."


def _division(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.division is not Division.closed:
        return
    if config.model.target is None:
        yield f"{config.model.name} is no MLPerf benchmark, so it has no accuracy to reach: run it with division=open."
    known = BENCHMARKS.get(config.model.benchmark or "")
    if known and config.model.target is not None and config.scenario.name not in known.closed:
        yield f"The closed division has no {config.scenario.name.name} for {config.model.name}: use division=open."
    if plan.engine.get("enable_prefix_caching"):
        yield "Prefix caching between queries is not allowed: leave out backend.engine.enable_prefix_caching."
    if plan.engine.get("speculative_config"):
        yield "Speculative decoding is not allowed: leave out backend.engine.speculative_config."
    if isinstance(config.model, Decoder) and (config.model.max_new_tokens, config.model.min_new_tokens) != (128, 1):
        yield "MLPerf generates 1 to 128 tokens: leave out model.max_new_tokens and model.min_new_tokens."
    if isinstance(config.backend, OpenaiBackend):
        yield "What the servers run (caching, speculation, precision) is not known here: use division=open."
