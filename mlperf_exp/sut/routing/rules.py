"""What a scenario allows the router to do."""

from __future__ import annotations

from mlperf_exp.config import Scenario
from mlperf_exp.messages import Plan
from mlperf_exp.sut.routing.router import Retry


def retry(scenario: Scenario) -> Retry:
    """Which queries of a lost replica another may answer: offline any, else those that showed nothing yet."""
    return Retry.any if scenario is Scenario.offline else Retry.unstarted


def longest_first(plan: Plan, samples: int) -> int:
    """Over how many queries an offline test may be sorted: one copy of what it draws from; else 0."""
    rules = plan.config.scenario
    if rules.name is not Scenario.offline:
        return 0
    return rules.samples or min(samples, plan.config.model.performance_samples or samples)
