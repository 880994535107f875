"""Which of several servers gets the next query: the one with the least work outstanding.

Pure bookkeeping, without clock, network or thread. Work is counted in tokens; a server that holds as many queries as
it may is passed over, and so is one that was taken out.
"""

from __future__ import annotations

import heapq


class Router:
    """Least outstanding first; among equals the one whose last query lies furthest back, which is round robin.

    A heap holds an entry for each change of a server; entries that a later change outdated are dropped when they
    surface, and all at once when they outnumber the rest. So every operation costs O(log servers), amortized.

    Args:
        servers: how many there are; they are known by their position, from 0.
        capacity: how many queries one server may hold at a time.
    """

    def __init__(self, servers: int, capacity: int) -> None:
        if servers < 1 or capacity < 1:
            raise ValueError("a router needs at least one server and room for one query")
        self._capacity = capacity
        self._work = [0] * servers
        self._queries = [0] * servers
        self._last_sent = list(range(-servers, 0))
        self._out = [False] * servers
        self._sent = 0
        self._heap: list[tuple[int, int, int]] = [(0, last, server) for server, last in enumerate(self._last_sent)]

    def outstanding(self, server: int) -> int:
        """The work (tokens) that this server holds; never negative."""
        return self._work[server]

    def pick(self) -> int | None:
        """The server for the next query, or None while all are full or taken out; changes nothing."""
        heap = self._heap
        while heap:
            work, last_sent, server = heap[0]
            if self._available(server) and work == self._work[server] and last_sent == self._last_sent[server]:
                return server
            heapq.heappop(heap)
        return None

    def on_sent(self, server: int, work: int) -> None:
        """A query of ``work`` tokens went to ``server``."""
        if work < 0:
            raise ValueError(f"work must not be negative: {work}")
        self._work[server] += work
        self._queries[server] += 1
        self._last_sent[server] = self._sent
        self._sent += 1
        self._push(server)

    def on_done(self, server: int, work: int) -> None:
        """A query of ``work`` tokens has left ``server``, with or without an answer.

        Raises:
            ValueError: the server does not hold so much.
        """
        if work < 0 or self._queries[server] < 1 or self._work[server] < work:
            raise ValueError(f"server {server} does not hold a query of {work} tokens")
        self._work[server] -= work
        self._queries[server] -= 1
        self._push(server)

    def take_out(self, server: int) -> None:
        """Give ``server`` no more queries; those that it holds still end with :meth:`on_done`."""
        self._out[server] = True

    def is_out(self, server: int) -> bool:
        """Whether ``server`` was taken out."""
        return self._out[server]

    @property
    def alive(self) -> int:
        """How many servers have not been taken out."""
        return self._out.count(False)

    def _available(self, server: int) -> bool:
        return not self._out[server] and self._queries[server] < self._capacity

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
