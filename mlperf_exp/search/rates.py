"""Which rate to try next. Pure: probes in, a rate out, so that a search that was killed goes on from its probes.

The first probe sends all at once, which shows the capacity. The highest valid rate is a little below it where the
bounds are wide, and further below where they are tight; from there the bracket is halved on a logarithmic scale.

Other work on the host makes a system look slower, never faster: of two probes at one rate the better one counts. A rate
is tried again where the harness was late when it failed, and where the bracket would close on a failure that no other
one near it supports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

RESOLUTION = 1.02  # the highest valid and the lowest invalid rate end this close to each other
MAX_PROBES, MAX_RUNS = 24, 8
_BELOW_CAPACITY, _DOWN, _UP = 0.9, 0.75, 4.0
_WIDE = 1.25  # a bracket wider than this is narrowed by the capacity, not by halving
_NEAR = 1.03  # a failure is supported by another one up to so far above it
_LEAST = 0.01  # of the capacity: below it no rate is looked for


@dataclass(frozen=True, slots=True)
class Probe:
    """One test at a rate.

    ``reason`` says why it was not valid, ``doubt`` why that may be the harness's fault; ``figures`` are its metrics, by
    their names.
    """

    number: int
    target_qps: float
    valid: bool
    completed_per_second: float
    reason: str | None = None
    full: bool = False  # of full length, not a short probe
    figures: dict[str, float] = field(default_factory=dict)
    doubt: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The probe as JSON values."""
        return asdict(self)


def bracket(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest valid rate below every invalid one, and the lowest invalid rate; None where there is none."""
    good = {probe.target_qps for probe in probes if probe.valid}
    failed = min((probe.target_qps for probe in probes if probe.target_qps not in good), default=None)
    return max((rate for rate in good if failed is None or rate < failed), default=None), failed


def next_probe(probes: Sequence[Probe], first: float) -> float | None:
    """The next short probe's rate; None where the bracket is closed, or where no rate is valid.

    ``first`` is so high that all queries come at once.
    """
    short = [probe for probe in probes if not probe.full]
    passed, failed = bracket(short)
    if len(short) >= MAX_PROBES:
        return None
    if (again := _doubtful(short)) is not None:
        return again
    if failed is None:
        return first if passed is None else _UP * passed
    capacity = max(probe.completed_per_second for probe in short if not probe.valid)
    if passed is None:
        rate = min(_BELOW_CAPACITY * capacity, failed * _DOWN)
        return rate if rate > _LEAST * capacity else None
    if failed <= RESOLUTION * passed:
        return None if _supported(short, failed) else failed
    middle = math.sqrt(passed * failed)
    if failed > _WIDE * passed:
        return max(passed * (1 + (_WIDE - 1) / 2), min(middle, capacity))
    return middle


def _doubtful(probes: Sequence[Probe]) -> float | None:
    """The last test's rate where it failed for the first time, and perhaps by the harness's fault."""
    if not probes or probes[-1].valid or probes[-1].doubt is None:
        return None
    rate = probes[-1].target_qps
    return rate if sum(probe.target_qps == rate for probe in probes) == 1 else None


def _supported(probes: Sequence[Probe], rate: float) -> bool:
    """Whether a rate failed twice, or another one near above it failed too."""
    return sum(not probe.valid and rate <= probe.target_qps <= _NEAR * rate for probe in probes) > 1


def next_run(probes: Sequence[Probe]) -> float | None:
    """The rate of the next full run: the bracket's, and after a run that was not valid a step less; None to give up."""
    runs = [probe for probe in probes if probe.full]
    if len(runs) >= MAX_RUNS:
        return None
    if not runs:
        return bracket([probe for probe in probes if not probe.full])[0]
    last = runs[-1]
    if last.valid:
        return None
    if (again := _doubtful(runs)) is not None:
        return again
    rate = last.target_qps / RESOLUTION
    # An overloaded run shows what the system can do; far below the rate, small steps would take hours.
    return min(rate, last.completed_per_second) if last.completed_per_second > 0.5 * rate else rate


def found(probes: Sequence[Probe]) -> float | None:
    """The highest rate that a full run was valid at, if any."""
    return max((probe.target_qps for probe in probes if probe.full and probe.valid), default=None)
