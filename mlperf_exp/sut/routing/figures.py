"""What one test showed of its replicas: how much each did, when it was done, what the way there and back added."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np


class Tally:
    """Of one LoadGen test over ``servers`` replicas; times are seconds of whatever clock the caller keeps."""

    def __init__(self, servers: int, began: float) -> None:
        self.queries = [0] * servers  # that each answered
        self.work = [0] * servers  # of these, in tokens
        self.ended = [began] * servers  # its last answer
        self.waited_s = array("d")  # in the router, for a replica with room
        self.way_s = array("d")  # to the replica and back, without its own time
        self.retried = 0

    def done(self, server: int, work: int, now: float) -> None:
        """``server`` answered a query of ``work`` tokens."""
        self.queries[server] += 1
        self.work[server] += work
        self.ended[server] = now

    def tail_s(self, servers: Sequence[int]) -> float:
        """From the moment when the first of ``servers`` had nothing left to do until the last one ended."""
        ends = [self.ended[server] for server in servers]
        return max(ends) - min(ends) if ends else 0.0

    def metrics(self, alive: Sequence[int]) -> dict[str, float]:
        """``tail_s``, the wait for a replica with room, the router's overhead, and the least and most work of one.

        ``router_overhead``: from handing a query over to its answer, less the time in which the replica had it.
        """
        figures = {"retried": float(self.retried), "tail_s": self.tail_s(alive)}
        for name, values in (("router_wait", self.waited_s), ("router_overhead", self.way_s)):
            if len(values):
                for short, percentile in (("p50", 50), ("p99", 99)):
                    figures[f"{name}_{short}_ms"] = float(np.percentile(np.array(values), percentile)) * 1e3
        if any(self.work):
            shares = [self.work[server] * len(self.work) / sum(self.work) for server in range(len(self.work))]
            figures["replica_share_min"], figures["replica_share_max"] = min(shares), max(shares)
        return figures
