"""Runs compliance tests on a system that is already started, each in a folder of its own, and verifies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlperf_exp import loadgen
from mlperf_exp.compliance import accuracy, caching, outputs
from mlperf_exp.compliance.audit import audit_config
from mlperf_exp.config import Scenario
from mlperf_exp.errors import Interrupted, RunFailed
from mlperf_exp.inputs import Inputs, Scorer, ScoresAnswers
from mlperf_exp.messages import ComplianceTest, Plan
from mlperf_exp.progress import Progress
from mlperf_exp.submission.rules import checked_as
from mlperf_exp.sut.base import SystemUnderTest


def folder_of(run_dir: Path, test: str) -> Path:
    """Where a test's logs are."""
    return run_dir / "compliance" / test


def run(plan: Plan, sut: SystemUnderTest, inputs: Inputs, progress: Progress) -> Iterator[ComplianceTest]:
    """Run and verify the plan's compliance tests one after the other.

    Raises:
        RunFailed: the system was lost; tests that were verified before stay.
        Interrupted: by a signal.
    """
    for name in plan.compliance:
        folder = folder_of(plan.run_dir, name)
        folder.mkdir(parents=True, exist_ok=True)
        progress.phase(name)
        outcome = loadgen.run_test(
            plan, "performance", sut, len(inputs.samples), folder, progress.update, audit=audit_config(name)
        )
        outcome.records.write_parquet(folder / "queries.parquet", inputs.prompt_tokens)
        if outcome.interrupted:
            raise Interrupted("interrupted")
        if outcome.failure:
            raise RunFailed(f"{name}: {outcome.failure}")
        yield verify(plan, name, folder, errors=len(outcome.records.errors), scorer=inputs.scorer)


def verify(
    plan: Plan, name: str, folder: Path, errors: int = 0, scorer: Scorer | ScoresAnswers | None = None
) -> ComplianceTest:
    """Verify one test from its logs in ``folder`` and those of the run; ``scorer`` serves TEST01."""
    if name == outputs.NAME:
        offline = plan.config.scenario.name is Scenario.offline
        test = outputs.verify(folder, offline, plan.config.model.architecture.eos_token_ids)
    elif name == caching.NAME:
        test = caching.verify(folder, plan.run_dir / "performance")
    elif name == accuracy.NAME:
        target = plan.config.model.target
        benchmark = checked_as(plan.config.model.benchmark, {} if target is None else target.minimum)
        allowed = accuracy.allowed_percent(benchmark)
        logs = plan.run_dir / "accuracy", plan.run_dir / "performance"
        test = accuracy.verify(folder, *logs, _score(scorer), allowed)
    else:
        raise ValueError(f"{name} is no compliance test known here")
    if not errors:
        return test
    reasons = (f"{errors} queries ended with an error", *test.reasons)
    return ComplianceTest(test.name, False, test.checks, test.log_dir, test.figures, reasons)


def _score(scorer: Scorer | ScoresAnswers | None) -> accuracy.Score | None:
    """The scorer as TEST01 wants it; None where it cannot score a part of the answers."""
    if not isinstance(scorer, ScoresAnswers):
        return None
    of: ScoresAnswers = scorer

    def scored(answers: Mapping[int, bytes]) -> tuple[float, str]:
        score = of.score_answers(answers)
        return score.metrics[of.main], of.text(score)

    return scored
