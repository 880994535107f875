"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """How it is; only ``fail`` makes the exit status 1."""

    passed = "pass"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of one thing on one node, and what to do about it. ``value`` is in the unit that ``name`` says."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    value: float | None = None
    node: str = ""


def graded(
    name: str, value: float, found: str, remedy: str, *, good: float, bearable: float, more_is_better: bool = True
) -> Check:
    """A check by bounds: pass up to ``good``, warn up to ``bearable``, fail beyond; NaN fails."""
    sign = 1.0 if more_is_better else -1.0
    status = Status.passed if sign * value >= sign * good else Status.warn
    if not sign * value >= sign * bearable:
        status = Status.fail
    return Check(name, status, found, "" if status is Status.passed else remedy, value)
