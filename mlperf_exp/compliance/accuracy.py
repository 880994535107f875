"""TEST01: what the system answers while its speed is measured is what it answered in the accuracy test.

LoadGen logs about 4,096 answers of a whole performance run. Each must be the accuracy test's answer to the same sample,
byte by byte (the reference compares the first number of each only), and the speed must be that of the performance
test within 10 %. A system that may answer differently twice passes all the same where both sets of answers score
within 1 % of each other (0.1 % for a 99.9 % target), by the benchmark's own score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mlperf_exp import measure
from mlperf_exp.compliance.logs import ACCURACY, detail, read_answers
from mlperf_exp.compliance.speed import comparable, speed, tolerance
from mlperf_exp.errors import RunFailed
from mlperf_exp.files import write_atomic
from mlperf_exp.messages import ComplianceTest

NAME = "TEST01"

Score = Callable[[Mapping[int, bytes]], tuple[float, str]]
"""Answers by sample -> the benchmark's score, and the line that its reference prints for it."""


def verify(
    folder: Path, accuracy: Path, performance: Path, score: Score | None = None, allowed_percent: float = 1.0
) -> ComplianceTest:
    """Verify the test whose logs are in ``folder``.

    Writes ``verify_accuracy.txt`` and ``verify_performance.txt`` there, and where the answers differ and ``score`` is
    given, ``baseline_accuracy.txt``, ``compliance_accuracy.txt`` and ``accuracy.txt``.

    Args:
        folder: LoadGen's logs of the test.
        accuracy: those of the accuracy test.
        performance: those of the performance test.
        score: scores answers, for systems that may answer differently twice.
        allowed_percent: how far the two scores may lie apart.
    """
    logged, reasons = detail(folder, NAME)
    figures: dict[str, float] = {}
    try:
        same, problem = _answers(folder, accuracy, score, allowed_percent, figures)
    except RunFailed as error:
        same, problem = False, str(error)
    if problem:
        reasons.append(problem)
    reference = measure.read_detail_log(performance)
    slow = comparable(reference, logged)
    before, now = speed(reference) or 0.0, speed(logged) or 0.0
    figures |= {"reference_per_second": before, "test_per_second": now}
    if not slow and abs(now / before - 1) > tolerance(reference):
        slow = [f"{now:,.2f}/s while answers are logged is not within {tolerance(reference):.0%} of {before:,.2f}/s"]
    deterministic = same and not figures.get("differing")
    lines = [
        f"num_perf_log_entries = {figures.get('samples', 0):.0f}",
        f"num_perf_log_data_mismatch = {figures.get('differing', 0):.0f}",
        "TEST PASS" if deterministic else "TEST FAIL",
    ]
    write_atomic(folder / "verify_accuracy.txt", "\n".join(lines) + "\n")
    lines = [f"Reference score = {before}", f"Test score = {now}", "TEST FAIL" if slow else "TEST PASS"]
    write_atomic(folder / "verify_performance.txt", "\n".join(lines) + "\n")
    reasons += slow
    checks: dict[str, bool | None] = {"accuracy": same, "performance": not slow}
    return ComplianceTest(NAME, not reasons, checks, folder, figures, tuple(reasons))


def _answers(
    folder: Path, accuracy: Path, score: Score | None, allowed_percent: float, figures: dict[str, float]
) -> tuple[bool, str | None]:
    """Whether the answers pass, and the clause against them."""
    known: dict[int, bytes] = {}
    for row in read_answers(accuracy / ACCURACY):
        known.setdefault(row.qsl_idx, row.payload)
    answers = {row.qsl_idx: row.payload for row in read_answers(folder / ACCURACY)}
    figures["samples"] = float(len(answers))
    if not answers:
        return False, "no answer was logged"
    strange = [index for index in answers if index not in known]
    if strange:
        return False, f"the accuracy test has no answer to {len(strange)} of the samples, such as {strange[0]}"
    differing = [index for index, data in answers.items() if data != known[index]]
    figures["differing"] = float(len(differing))
    if not differing:
        return True, None
    counted = f"{len(differing)} of {len(answers)}"
    said = f"{counted} answers are not those of the accuracy test, such as sample {differing[0]}'s"
    if score is None:
        return False, said
    before, before_text = score({index: known[index] for index in answers})
    now, now_text = score(answers)
    figures |= {"baseline_score": before, "compliance_score": now}
    write_atomic(folder / "baseline_accuracy.txt", before_text + "\n")
    write_atomic(folder / "compliance_accuracy.txt", now_text + "\n")
    write_atomic(folder / "accuracy.txt", now_text + "\n")
    apart = 0.0 if before == now else abs(1 - before / now) * 100 if now else float("inf")
    figures["apart_percent"] = apart
    if apart <= allowed_percent:
        return True, None
    return False, f"{said}, and their scores {before:g} and {now:g} lie {apart:.2f} % apart, over {allowed_percent:g} %"


def allowed_percent(benchmark: str) -> float:
    """How far two scores may lie apart, by the checker's name of the benchmark: 0.1 for a 99.9 % target, else 1."""
    return 0.1 if re.search(r"99\.9$", benchmark) else 1.0
