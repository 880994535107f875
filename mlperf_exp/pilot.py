"""How long one query takes, before a test that LoadGen sizes by it: single and multi stream.

LoadGen prepares the queries of these scenarios beforehand, for twice the test's duration at an expected latency, and
sends all of them where a benchmark asks for equal issue. By its default of 10 ms a language model's test would last for
days, and a fast system would run out of queries, which makes a run INVALID. So a few queries are sent one after the
other, and their latency is expected, where ``scenario.expected_latency_ms`` is left open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from mlperf_exp.config import Scenario
from mlperf_exp.errors import RunFailed
from mlperf_exp.messages import Answers, Completion, Plan, Queries
from mlperf_exp.sut.base import HoldsSamples, SystemUnderTest

STREAMS = {Scenario.single_stream: 1, Scenario.multi_stream: 8}  # samples a query
_QUERIES = 9
_MARGIN = 1.5  # a test of equal issue lasts 1.3 times its duration, and the system may be so much faster


def sized(plan: Plan, sut: SystemUnderTest, total_samples: int) -> Plan:
    """The plan with an expected latency, measured on a started system, where its scenario wants one and it has none.

    Raises:
        RunFailed: the system was lost, or did not answer for ``scenario.stall_timeout_s``.
    """
    rules = plan.config.scenario
    width = STREAMS.get(rules.name)
    if width is None or rules.expected_latency_ms is not None or "performance" not in plan.modes:
        return plan
    step = max(1, total_samples // (_QUERIES * width))  # over the whole data set, whose samples differ in length
    places = [place % total_samples for place in range(0, _QUERIES * width * step, step)]
    expected_ms = round(_MARGIN * _quarter_ms(sut, places, width, rules.stall_timeout_s), 6)
    scenario = replace(rules, expected_latency_ms=expected_ms)
    return replace(plan, config=replace(plan.config, scenario=scenario))


def _quarter_ms(sut: SystemUnderTest, places: Sequence[int], width: int, timeout_s: float) -> float:
    if isinstance(sut, HoldsSamples):
        sut.load(sorted(set(places)))
    took = []
    for first in range(0, len(places), width):
        answers = _Answers(width)
        began = time.perf_counter()
        sut.submit(Queries(first, places[first : first + width]), answers)
        if not answers.all.wait(timeout_s):
            raise RunFailed(f"no query finished in {timeout_s:g} s before the test (scenario.stall_timeout_s)")
        if answers.failure is not None:
            raise RunFailed(answers.failure)
        took.append(1e3 * (time.perf_counter() - began))
    if isinstance(sut, HoldsSamples):
        sut.unload(sorted(set(places)))
    return sorted(took)[len(took) // 4]  # the host's other work makes some slower, none faster


class _Answers:
    """A sink that waits for one query's answers."""

    def __init__(self, count: int) -> None:
        self.all = threading.Event()
        self.failure: str | None = None
        self._left = count
        self._lock = threading.Lock()

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        """Of no interest here."""

    def complete(self, completions: Sequence[Completion]) -> None:
        """Count the ends; an error is an end, too, which the test itself will show."""
        self._count(len(completions))

    def complete_many(self, answers: Answers) -> None:
        """As :meth:`complete`."""
        self._count(len(answers.rows))

    def failed(self, reason: str) -> None:
        """The system is lost."""
        self.failure = reason
        self.all.set()

    def _count(self, ended: int) -> None:
        with self._lock:
            self._left -= ended
            if self._left <= 0:
                self.all.set()
