"""Which compliance tests MLPerf asks for, and what is said of a run that lacks or fails one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlperf_exp.config import Compliance, Config, Division, SimulatedBackend, Weights
from mlperf_exp.errors import UserError
from mlperf_exp.messages import ComplianceTest, Measurement, Plan

TESTS: dict[str, tuple[str, ...]] = {
    # LoadGen's model name -> tests. Source: tools/submission/submission_checker/constants.py, models_TEST0X of v6.1.
    "llama3_1-8b": ("TEST06",),
    "llama3_1-8b-edge": (),
    "resnet50": ("TEST01", "TEST04"),
    "bert": ("TEST01",),
}


def planned(config: Config, modes: tuple[str, ...]) -> tuple[str, ...]:
    """The tests that a run makes: with ``auto`` those of the closed division, where the run can be valid at all.

    Raises:
        UserError: tests are asked for that do not exist.
    """
    tests = TESTS.get(config.model.benchmark or "", ())
    if config.compliance is Compliance.on and not tests:
        raise UserError("compliance", f"MLPerf has no compliance test for {config.model.name}", "Leave it at auto")
    if config.compliance is Compliance.off or "performance" not in modes:
        return ()
    if config.compliance is Compliance.on:
        return tests
    hopeless = isinstance(config.backend, SimulatedBackend) or config.model.weights is Weights.dummy
    return tests if config.division is Division.closed and not hopeless else ()


def facts(measurement: Measurement) -> dict[str, Any]:
    """``verdict.compliance``: each test with its checks (null: not applicable) and the reasons against it."""
    return {
        test.name: {
            "passed": test.passed,
            "checks": test.checks,
            "figures": test.figures,
            "reasons": list(test.reasons),
        }
        for test in measurement.compliance
    }


def reasons(plan: Plan, measurement: Measurement) -> Iterator[str]:
    """One sentence for each test that the closed division asks for and that is missing or failed."""
    config = plan.config
    if config.division is not Division.closed or "performance" not in plan.modes or config.model.target is None:
        return
    done = {test.name: test for test in measurement.compliance}
    for name in TESTS.get(config.model.benchmark or "", ()):
        if name in done:
            yield from failed(done[name])
        elif config.compliance is Compliance.off:
            yield f"{name} was not run, and the closed division asks for it: leave out compliance=off."
        else:
            yield f"{name} was not run, and the closed division asks for it: run it again, or with division=open."


def failed(test: ComplianceTest) -> Iterator[str]:
    """The sentence on a test that failed."""
    if not test.passed:
        why = "; ".join(test.reasons).rstrip(".") or "it gives no reason"
        yield f"{test.name} failed: {why}. See compliance/{test.name}, mend the system, and run it again."
