"""Plan -> Measurement for inference: start the system, run LoadGen's tests on it, stop it, score the answers.

A started system outlives a measurement: :func:`measure` may be called again on it, with another load. Where jobs of a
sweep share a process they share the system too (:mod:`mlperf_exp.running`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlperf_exp import hashes, loadgen, pilot, running
from mlperf_exp.client import client_metrics
from mlperf_exp.compliance import session
from mlperf_exp.config import Search
from mlperf_exp.errors import Interrupted, RunFailed
from mlperf_exp.files import write_atomic
from mlperf_exp.inputs import Inputs
from mlperf_exp.measure import load_phases, performance_metrics, read_detail_log, window_ns
from mlperf_exp.messages import ComplianceTest, Measurement, Plan, Score, Test
from mlperf_exp.progress import Progress
from mlperf_exp.repeats import repeat
from mlperf_exp.running import Running
from mlperf_exp.search.state import settled
from mlperf_exp.sut import create
from mlperf_exp.sut.base import Reports, SystemUnderTest

# CPython lets a thread keep the interpreter for 5 ms by default, which would stand in the latencies of all others.
_SWITCH_INTERVAL_S = 0.0005


def bench(plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """A whole run: start the system, or take the one that an earlier run left, measure, stop it or leave it, score.

    A failure or an interruption is part of the answer, with all that finished before it.

    Raises:
        UserError: the system cannot start because of what the user asked for.
    """
    system: Running | None = None
    try:
        system = running.take(hashes.engine_hash(plan, inputs)) or start(plan, inputs, progress)
        started = system
        measurement = measure(started, plan, inputs, progress)
        at_rate = settled(plan, measurement)
        measurement = repeat(at_rate, measurement, lambda again: measure(started, again, inputs, progress))
    except RunFailed as error:
        measurement = Measurement({}, {}, failure=str(error), warnings=inputs.warnings)
    except (KeyboardInterrupt, Interrupted):
        measurement = _interrupted(Measurement({}, {}, warnings=inputs.warnings))
    finally:
        stopped = running.give_back(system) if system else {}
    origin = system.origin(plan) if system else None
    of_start = system.phases if system and origin and not origin.reused else {}
    measurement = replace(measurement, phases=of_start | measurement.phases | stopped, engine=origin)
    return score(measurement, plan, inputs, progress)


def start(plan: Plan, inputs: Inputs, progress: Progress) -> Running:
    """Start the plan's system and warm it up.

    Raises:
        UserError, RunFailed: it did not start; nothing of it is left.
        Interrupted: by a signal; the same.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    progress.phase("start")
    sut = create(plan, inputs.model)
    try:
        return Running(sut, plan, sut.start(inputs.samples), hashes.engine_hash(plan, inputs))
    except BaseException:
        sut.stop()
        raise


def measure(system: Running, plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """LoadGen's tests of ``plan.modes`` on a started system, into ``plan.run_dir``; answers are not scored yet.

    For each measurement after the first the system is idle and its caches are empty again. Never raises for what a
    system or a signal does: that is part of the answer, with all that finished before it.
    """
    if plan.config.search is not Search.off:
        from mlperf_exp.search.session import search

        return search(system, plan, inputs, progress)
    metrics: dict[str, float] = {}
    phases: dict[str, float] = {}
    tests: list[Test] = []
    checked: list[ComplianceTest] = []
    failure: str | None = None
    interrupted = False
    try:
        if system.lost:
            raise RunFailed(f"the system can serve no more: {system.lost}")
        if system.measurements:
            phases |= _reset(system, inputs)
        system.measurements += 1
        plan = _sized(plan, system, inputs, metrics, phases)
        for mode in plan.modes:
            test, failure, interrupted = _test(plan, mode, system.sut, inputs, progress, metrics, phases)
            tests.append(test)
            if failure or interrupted:
                break
        else:
            checked += _compliance(plan, system.sut, inputs, progress, phases)
    except RunFailed as error:
        failure = str(error)
    except (KeyboardInterrupt, Interrupted):
        interrupted = True
    if failure or interrupted:  # queries of the test may still be inside it
        system.lost = system.lost or failure or "a measurement on it was interrupted"
    own, warnings = system.sut.report() if isinstance(system.sut, Reports) else ({}, ())
    measurement = Measurement(
        metrics | own,
        phases,
        tuple(tests),
        compliance=tuple(checked),
        failure=failure,
        warnings=(*inputs.warnings, *warnings),
    )
    return _interrupted(measurement) if interrupted else measurement


def score(measurement: Measurement, plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """The measurement with its answers scored, where all tests finished and there was one of accuracy."""
    if measurement.failure or "accuracy" not in plan.modes:
        return measurement
    phases = dict(measurement.phases)
    try:
        scored = _score(plan, inputs, progress, phases)
    except RunFailed as error:
        return replace(measurement, failure=str(error))
    except (KeyboardInterrupt, Interrupted):
        return _interrupted(measurement)
    return replace(measurement, metrics=measurement.metrics | scored.metrics, phases=phases, score=scored)


def _interrupted(measurement: Measurement) -> Measurement:
    return replace(measurement, failure="interrupted", interrupted=True)


def _reset(system: Running, inputs: Inputs) -> dict[str, float]:
    began = time.perf_counter()
    system.sut.reset(inputs.samples)
    return {"reset_s": time.perf_counter() - began}


def _sized(plan: Plan, system: Running, inputs: Inputs, metrics: dict[str, float], phases: dict[str, float]) -> Plan:
    """The plan with the expected latency that LoadGen wants in some scenarios; see :mod:`mlperf_exp.pilot`."""
    began = time.perf_counter()
    sized = pilot.sized(plan, system.sut, len(inputs.samples))
    if sized is not plan:
        phases["pilot_s"] = time.perf_counter() - began
        metrics["expected_latency_ms"] = float(sized.config.scenario.expected_latency_ms or 0.0)
    return sized


def _test(
    plan: Plan,
    mode: str,
    sut: SystemUnderTest,
    inputs: Inputs,
    progress: Progress,
    metrics: dict[str, float],
    phases: dict[str, float],
) -> tuple[Test, str | None, bool]:
    log_dir = plan.run_dir / mode
    log_dir.mkdir(exist_ok=True)
    progress.phase(mode, *expected(plan, mode, len(inputs.samples)))
    outcome = loadgen.run_test(plan, mode, sut, len(inputs.samples), log_dir, progress.update)
    records = outcome.records
    records.write_parquet(log_dir / "queries.parquet", inputs.prompt_tokens)
    logged = read_detail_log(log_dir) if outcome.finished else {}
    if mode == "performance":
        metrics |= performance_metrics(plan.config, records, logged, inputs.prompt_tokens)
        metrics |= client_metrics(records, logged, outcome.cost)
        phases |= load_phases(records)
    else:
        phases["accuracy_s"] = outcome.wall_s
    test = Test(
        mode=mode,
        log_dir=log_dir,
        loadgen=logged,
        issued=records.issued,
        completed=records.ended - len(records.errors),
        errors=len(records.errors),
        first_error=next(iter(records.errors.values()), None),
        wall_s=outcome.wall_s,
        window_ns=window_ns(records),
    )
    return test, outcome.failure, outcome.interrupted


def _compliance(
    plan: Plan, sut: SystemUnderTest, inputs: Inputs, progress: Progress, phases: dict[str, float]
) -> Iterator[ComplianceTest]:
    if not plan.compliance:
        return
    began = time.perf_counter()
    try:
        yield from session.run(plan, sut, inputs, progress)
    finally:
        phases["compliance_s"] = time.perf_counter() - began


def expected(plan: Plan, mode: str, total_samples: int) -> tuple[int | None, float | None]:
    """How many queries a test will have, and how long it lasts at least; None where nobody knows beforehand."""
    if mode == "accuracy":
        return total_samples, None
    chosen, _ = loadgen.settings(plan, mode, total_samples)
    seconds = chosen.min_duration_ms / 1000
    name = str(chosen.scenario).rsplit(".", 1)[-1]
    rates = {"Server": chosen.server_target_qps, "Offline": 1.1 * chosen.offline_expected_qps}
    if name not in rates:
        return None, seconds
    count = _whole_copies(chosen, max(chosen.min_query_count, round(rates[name] * seconds)))
    return count, seconds if name == "Server" else None


def _whole_copies(chosen: Any, count: int) -> int:
    """Equal issue sends whole copies of the data set, at least one; near enough for a display."""
    copy = chosen.performance_sample_count_override
    return max(1, round(count / copy)) * copy if chosen.sample_concatenate_permutation else count


def _score(plan: Plan, inputs: Inputs, progress: Progress, phases: dict[str, float]) -> Score:
    assert inputs.scorer is not None
    progress.phase("score", len(inputs.samples))
    began = time.perf_counter()
    folder: Path = plan.run_dir / "accuracy"
    result = inputs.scorer.score(folder / "mlperf_log_accuracy.json", progress.score)
    write_atomic(folder / "accuracy.txt", inputs.scorer.text(result) + "\n")
    phases["score_s"] = time.perf_counter() - began
    return result
