"""How much a query is, and how many of them a replica is given at a time."""

from __future__ import annotations

from typing import Any

from mlperf_exp.config import SimulatedBackend, TorchBackend, VllmBackend
from mlperf_exp.messages import Plan

_SPARE = 1.25  # queries on a replica for each that it answers at a time: the next ones are there when it has room


def work(sample: Any, model: Any) -> int:
    """A query's work, in tokens where it is known: prompt and longest answer."""
    tokens = getattr(sample, "tokens", None)
    return 1 if tokens is None else len(tokens) + int(getattr(model, "max_new_tokens", 0))


def capacity(plan: Plan) -> int | None:
    """How many queries keep a replica busy; the rest waits in the router, for whichever is free first."""
    backend = plan.config.backend
    most: float | None = None
    if isinstance(backend, VllmBackend):
        most = _SPARE * int(plan.engine["max_num_seqs"])
    elif isinstance(backend, SimulatedBackend):
        most = None if backend.concurrency is None else _SPARE * backend.concurrency
    elif isinstance(backend, TorchBackend):
        most = 2.0 * int(plan.engine["sizes"][-1]) * int(plan.engine["in_flight"])
    return None if most is None else max(2, int(most) + 1)
