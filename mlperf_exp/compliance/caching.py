"""TEST04: the same sample again and again must not be more than 10 % faster than samples that differ."""

from __future__ import annotations

from pathlib import Path

from mlperf_exp import measure
from mlperf_exp.compliance.logs import detail
from mlperf_exp.compliance.speed import comparable, speed, tolerance
from mlperf_exp.files import write_atomic
from mlperf_exp.messages import ComplianceTest

NAME = "TEST04"


def verify(folder: Path, performance: Path) -> ComplianceTest:
    """Compare the test in ``folder`` with the one in ``performance``, and write ``verify_performance.txt``."""
    logged, reasons = detail(folder, NAME)
    reference = measure.read_detail_log(performance)
    reasons += comparable(reference, logged)
    before, now = speed(reference) or 0.0, speed(logged) or 0.0
    if not reasons and now >= before * (1 + tolerance(reference)):
        reasons.append(
            f"one sample again and again runs at {now:,.2f}/s, {now / before - 1:.0%} faster than {before:,.2f}/s with "
            "samples that differ: something keeps answers"
        )
    passed = not reasons
    lines = [f"Reference score = {before}", f"Test score = {now}", "TEST PASS" if passed else "TEST FAIL"]
    write_atomic(folder / "verify_performance.txt", "\n".join(lines) + "\n")
    figures = {"reference_per_second": before, "test_per_second": now}
    return ComplianceTest(NAME, passed, {"performance": passed}, folder, figures, tuple(reasons))
