"""A started system, and how the runs of one process share it: jobs of a sweep that differ in nothing but their load.

Whoever runs several jobs in one process (a launcher) says before each whether another will want the system
(:func:`expect_another`). A run then takes the kept system, if it is the very engine that its plan wants, and leaves it
for the next one, if it is sound. ``engine_hash`` of :mod:`mlperf_exp.hashes` decides what the same engine is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlperf_exp.messages import EngineStart, Plan

if TYPE_CHECKING:
    from mlperf_exp.sut.base import SystemUnderTest


@dataclass(slots=True)
class Running:
    """A started system, which serves several measurements one after another; see :func:`mlperf_exp.bench.start`.

    ``plan`` is what it was started for: what the engine prints stays in that run's folder. ``phases`` are the seconds
    of the start. ``lost`` says why it can serve no more.
    """

    sut: SystemUnderTest
    plan: Plan
    phases: dict[str, float]
    engine_hash: str = ""
    measurements: int = 0
    lost: str | None = None

    def stop(self) -> dict[str, float]:
        """Stop the system; how long that took, as ``stop_s``."""
        began = time.perf_counter()
        self.lost = self.lost or "it was stopped"
        self.sut.stop()
        return {"stop_s": time.perf_counter() - began}

    def origin(self, plan: Plan) -> EngineStart:
        """The start of this system as a run of ``plan`` sees it."""
        return EngineStart(self.plan.run_dir, sum(self.phases.values()), self.plan.run_dir != plan.run_dir)


_kept: Running | None = None
_another = _shared = False


def expect_another(wanted: bool) -> None:
    """Whether a later run in this process will want the system of the next one."""
    global _another, _shared
    _another = wanted
    _shared = _shared or wanted


def shared() -> bool:
    """Whether several runs share this process."""
    return _shared


def kept() -> bool:
    """Whether an earlier run left its system, which then holds the GPUs' memory."""
    return _kept is not None


def take(engine_hash: str) -> Running | None:
    """The kept system, if it is this engine; another one is stopped, so that the machine is free."""
    global _kept
    found, _kept = _kept, None
    if found is None or (found.engine_hash == engine_hash and not found.lost):
        return found
    found.stop()
    return None


def give_back(running: Running) -> dict[str, float]:
    """After a measurement: keep the system where another run wants it and it is sound, else stop it (``stop_s``)."""
    global _kept
    if _another and not running.lost:
        _kept = running
        return {}
    return running.stop()


def close() -> None:
    """Stop the kept system, if there is one."""
    global _kept
    found, _kept = _kept, None
    if found is not None:
        found.stop()
