"""Whose turn it is among several replicas: least outstanding work, round robin, or a class of the user's own.

Pure bookkeeping, without clock, network or thread. Work is counted in tokens; a replica that holds as many queries as
it may is passed over, and so is one that was taken out.
"""

from __future__ import annotations

import heapq
import importlib
import re
from collections import deque
from typing import Any, Protocol

from mlperf_exp.errors import UserError

UNLIMITED = 1 << 40  # queries that one replica may hold
HOOK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Policy(Protocol):
    """What a hook (``backend.routing=package.module:Class``) implements; made as ``Class(servers, capacity)``.

    Replicas are known by their position, from 0; at most ``capacity`` queries may be on one at a time.
    """

    def pick(self) -> int | None:
        """The replica for the next query, or None while all are full or taken out; changes nothing."""

    def on_sent(self, server: int, work: int) -> None:
        """A query of ``work`` tokens went to ``server``."""

    def on_done(self, server: int, work: int) -> None:
        """A query of ``work`` tokens has left ``server``, with or without an answer."""

    def take_out(self, server: int) -> None:
        """Give ``server`` no more queries; those that it holds still end with :meth:`on_done`."""


class _Book:
    """What each server holds, and which were taken out."""

    def __init__(self, servers: int, capacity: int) -> None:
        if servers < 1 or capacity < 1:
            raise ValueError("a policy needs at least one server and room for one query")
        self._capacity = capacity
        self._work = [0] * servers
        self._queries = [0] * servers
        self._out = [False] * servers

    def outstanding(self, server: int) -> int:
        """The work (tokens) that this server holds; never negative."""
        return self._work[server]

    def on_sent(self, server: int, work: int) -> None:
        """See :class:`Policy`."""
        if work < 0:
            raise ValueError(f"work must not be negative: {work}")
        self._work[server] += work
        self._queries[server] += 1

    def on_done(self, server: int, work: int) -> None:
        """See :class:`Policy`.

        Raises:
            ValueError: the server does not hold so much.
        """
        if work < 0 or self._queries[server] < 1 or self._work[server] < work:
            raise ValueError(f"server {server} does not hold a query of {work} tokens")
        self._work[server] -= work
        self._queries[server] -= 1

    def take_out(self, server: int) -> None:
        """See :class:`Policy`."""
        self._out[server] = True

    def _available(self, server: int) -> bool:
        return not self._out[server] and self._queries[server] < self._capacity


class LeastOutstanding(_Book):
    """Least outstanding first; among equals the one whose last query lies furthest back, which is round robin.

    A heap holds an entry for each change of a server; entries that a later change outdated are dropped when they
    surface, and all at once when they outnumber the rest. So every operation costs O(log servers), amortized.
    """

    def __init__(self, servers: int, capacity: int) -> None:
        super().__init__(servers, capacity)
        self._last_sent = list(range(-servers, 0))
        self._sent = 0
        self._heap: list[tuple[int, int, int]] = [(0, last, server) for server, last in enumerate(self._last_sent)]

    def pick(self) -> int | None:
        """See :class:`Policy`."""
        heap = self._heap
        while heap:
            work, last_sent, server = heap[0]
            if self._available(server) and work == self._work[server] and last_sent == self._last_sent[server]:
                return server
            heapq.heappop(heap)
        return None

    def on_sent(self, server: int, work: int) -> None:
        """See :class:`Policy`."""
        super().on_sent(server, work)
        self._last_sent[server] = self._sent
        self._sent += 1
        self._push(server)

    def on_done(self, server: int, work: int) -> None:
        """See :class:`Policy`."""
        super().on_done(server, work)
        self._push(server)

    def _push(self, server: int) -> None:
        # A server that is full has no valid entry; it gets one from the query that leaves it.
        if not self._available(server):
            return
        if len(self._heap) > 64 + 4 * len(self._work):
            self._heap = [
                (self._work[each], self._last_sent[each], each)
                for each in range(len(self._work))
                if self._available(each)
            ]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (self._work[server], self._last_sent[server], server))


class RoundRobin(_Book):
    """Each in turn, whatever it holds; one that is full loses its turn until a query leaves it. O(1) an operation."""

    def __init__(self, servers: int, capacity: int) -> None:
        super().__init__(servers, capacity)
        self._ring = deque(range(servers))  # those with room, the next one first

    def pick(self) -> int | None:
        """See :class:`Policy`."""
        while self._ring and self._out[self._ring[0]]:
            self._ring.popleft()
        return self._ring[0] if self._ring else None

    def on_sent(self, server: int, work: int) -> None:
        """See :class:`Policy`."""
        super().on_sent(server, work)
        self._ring.remove(server)  # at its front, where it was picked
        if self._available(server):
            self._ring.append(server)

    def on_done(self, server: int, work: int) -> None:
        """See :class:`Policy`."""
        full = not self._available(server)
        super().on_done(server, work)
        if full and self._available(server):
            self._ring.append(server)


POLICIES: dict[str, type[LeastOutstanding] | type[RoundRobin]] = {
    "least_outstanding": LeastOutstanding,
    "round_robin": RoundRobin,
}


def check(name: str, key: str = "backend.routing") -> None:
    """Refuse what names no policy; imports nothing.

    Raises:
        UserError: naming those that there are.
    """
    if name not in POLICIES and not HOOK.fullmatch(name):
        allowed = f"Give one of {', '.join(POLICIES)}, or a class of your own as package.module:Class"
        raise UserError(key, f"'{name}' is no policy", allowed)


def policy(name: str, servers: int, capacity: int) -> Policy:
    """The policy of this name, for so many servers with room for so many queries each.

    Raises:
        UserError: a class of the user's own cannot be imported or made.
    """
    if name in POLICIES:
        return POLICIES[name](servers, capacity)
    check(name)
    module, _, cls = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), cls)(servers, capacity)
    except Exception as error:  # whatever a foreign module raises
        problem = f"{name} cannot be made: {type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            "backend.routing", problem, "Give package.module:Class, made as Class(servers, capacity)"
        ) from error
    missing = [part for part in ("pick", "on_sent", "on_done", "take_out") if not callable(getattr(made, part, None))]
    if missing:
        raise UserError(
            "backend.routing", f"{name} has no {', '.join(missing)}", "See mlperf_exp/sut/routing/policy.py"
        )
    hook: Policy = made
    return hook
