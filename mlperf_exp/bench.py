"""Plan -> Measurement for inference: start the system, run LoadGen's tests on it, stop it, score the answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_exp import loadgen, measure
from mlperf_exp.compliance import session
from mlperf_exp.errors import Interrupted, RunFailed
from mlperf_exp.files import write_atomic
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import ComplianceTest, Measurement, Plan, Score, Test
from mlperf_exp.progress import Progress
from mlperf_exp.sut import create
from mlperf_exp.sut.base import SystemUnderTest

# CPython lets a thread keep the interpreter for 5 ms by default, which would stand in the latencies of all others.
_SWITCH_INTERVAL_S = 0.0005


def bench(plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """Measure; a failure or an interruption is part of the answer, with all that finished before it."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    metrics: dict[str, float] = {}
    phases: dict[str, float] = {}
    tests: list[Test] = []
    checked: list[ComplianceTest] = []
    failure: str | None = None
    interrupted = False
    sut = create(plan, inputs.model)
    try:
        progress.phase("start")
        phases |= sut.start(inputs.samples)
        for mode in plan.modes:
            test, failure, interrupted = _test(plan, mode, sut, inputs, progress, metrics, phases)
            tests.append(test)
            if failure or interrupted:
                break
        else:
            checked += _compliance(plan, sut, inputs, progress, phases)
    except RunFailed as error:
        failure = str(error)
    except (KeyboardInterrupt, Interrupted):
        interrupted = True
    finally:
        stopping = time.perf_counter()
        sut.stop()
        phases["stop_s"] = time.perf_counter() - stopping
    score: Score | None = None
    if not failure and not interrupted and "accuracy" in plan.modes:
        try:
            score = _score(plan, inputs, progress, phases)
            metrics |= score.metrics
        except RunFailed as error:
            failure = str(error)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
    return Measurement(
        metrics=metrics,
        phases=phases,
        tests=tuple(tests),
        compliance=tuple(checked),
        score=score,
        failure="interrupted" if interrupted else failure,
        interrupted=interrupted,
        warnings=inputs.warnings,
    )


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
    logged = measure.read_detail_log(log_dir) if outcome.finished else {}
    if mode == "performance":
        metrics |= measure.performance_metrics(plan.config, records, logged, inputs.prompt_tokens)
        phases |= measure.load_phases(records)
    else:
        phases["accuracy_s"] = outcome.wall_s
    test = Test(
        mode=mode,
        log_dir=log_dir,
        loadgen=logged,
        issued=records.issued,
        completed=len(records.finished) - len(records.errors),
        errors=len(records.errors),
        first_error=next(iter(records.errors.values()), None),
        wall_s=outcome.wall_s,
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
    from mlperf_exp.data.accuracy_log import read_accuracy_log
    from mlperf_exp.data.rouge import accuracy_text, score

    assert inputs.decode is not None
    progress.phase("score", len(inputs.samples))
    began = time.perf_counter()
    folder: Path = plan.run_dir / "accuracy"
    outputs = read_accuracy_log(folder / "mlperf_log_accuracy.json")
    result = score(outputs, [sample.reference for sample in inputs.samples], inputs.decode, on_progress=progress.score)
    write_atomic(folder / "accuracy.txt", accuracy_text(result) + "\n")
    phases["score_s"] = time.perf_counter() - began
    return result
