"""MLPerf's own compliance checker on the log of a run (``mlperf_logging.compliance_checker``, with ``--werror``)."""

from __future__ import annotations

import subprocess
import sys

from mlperf_exp.messages import ComplianceTest
from mlperf_exp.train.job import Job

LOG = "result_0.txt"
_TIMEOUT_S = 120.0


def check(job: Job, ruleset: str) -> ComplianceTest:
    """Whether the checker accepts ``train/result_0.txt``; its words are in ``train/compliance_checker.txt``."""
    words = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", ruleset,
             "--werror", "--log_output", "compliance_checker.txt", LOG]  # fmt: skip
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=job.folder, check=False)
        said = (done.stdout + done.stderr).splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        said = [f"it did not run: {error}"]
    passed = any("SUCCESS" in line for line in said)
    reasons = () if passed else tuple(line.strip() for line in said if line.strip())[-1:]
    return ComplianceTest("mllog", passed, {f"ruleset {ruleset}": passed}, job.folder, reasons=reasons)
