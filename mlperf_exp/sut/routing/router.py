"""Every query from its coming to its one end, over several replicas that may be lost. Pure: no clock, network, thread.

Queries wait in one queue, in the order of their coming; with ``longest_first`` those that come together (all of an
offline test) are dealt by falling work, so that the replicas finish together. Each goes to the replica that the policy
picks. When a replica is lost its queries wait again at the front of the queue where that is allowed, else they end.

Whoever uses the router tells a query's sink of exactly what :meth:`Router.first`, :meth:`Router.done`,
:meth:`Router.lose`, :meth:`Router.again` and :meth:`Router.end_all` hand out, and of nothing else.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum

import numpy as np

from mlperf_exp.messages import Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.routing.figures import Tally
from mlperf_exp.sut.routing.policy import UNLIMITED, policy


class Retry(Enum):
    """Which queries of a lost replica another one may answer; a run with any is marked, and not valid."""

    never = "never"
    unstarted = "unstarted"  # without a first token so far: it cannot be told twice
    any = "any"


MOST_TRIES = 2  # a query that was on two replicas when they were lost may be what kills them


class Flight:
    """A query on its way. ``ticket`` names it between router and replica; ``server`` is -1 while it waits."""

    __slots__ = (
        "row",
        "sample",
        "sent_at",
        "server",
        "sink",
        "started",
        "taken_at",
        "tally",
        "ticket",
        "tries",
        "work",
    )

    def __init__(self, ticket: int, query: Query, work: int, sink: Sink, tally: Tally, now: float) -> None:
        self.ticket, self.row, self.sample = ticket, query.row, query.sample
        self.work, self.sink, self.tally = work, sink, tally
        self.taken_at = self.sent_at = now
        self.server, self.tries, self.started = -1, 0, False


class Router:
    """See the module.

    Args:
        servers: how many replicas there are; they are known by their position, from 0.
        capacity: how many queries one of them may hold at a time; None: any number.
        routing: the policy's name, see :mod:`mlperf_exp.sut.routing.policy`.
        retry: which queries of a lost replica may go to another.
        longest_first: over how many queries that come together they are dealt by falling work; 0: not at all.

    Raises:
        UserError: ``routing`` cannot be made.
    """

    def __init__(
        self,
        servers: int,
        capacity: int | None = None,
        *,
        routing: str = "least_outstanding",
        retry: Retry = Retry.never,
        longest_first: int = 0,
    ) -> None:
        self._policy = policy(routing, servers, capacity or UNLIMITED)
        self._retry, self._longest_first = retry, longest_first
        self._waiting: deque[Flight] = deque()
        self._flying: list[dict[int, Flight]] = [{} for _ in range(servers)]
        self._out = [False] * servers
        self._tickets = itertools.count()
        self._tallies: dict[int, tuple[Sink, Tally]] = {}  # in the order of their tests
        self.alive = servers
        self.strays = 0  # answers to queries that their replica did not have

    @property
    def waiting(self) -> int:
        """Queries that no replica has."""
        return len(self._waiting)

    @property
    def outstanding(self) -> int:
        """Queries that wait or fly. O(replicas)."""
        return len(self._waiting) + sum(map(len, self._flying))

    def is_out(self, server: int) -> bool:
        """Whether ``server`` was lost."""
        return self._out[server]

    def holds(self, server: int) -> int:
        """How many queries ``server`` has."""
        return len(self._flying[server])

    def tally(self) -> Tally | None:
        """The figures of the first test since the last :meth:`forget`."""
        return next((tally for _, tally in self._tallies.values()), None)

    def forget(self) -> None:
        """Forget the figures of earlier tests."""
        self._tallies.clear()

    def take(self, queries: Sequence[Query], works: Sequence[int], sink: Sink, now: float) -> None:
        """Queries came, ``works`` tokens each in the same order."""
        tally = self._tally_of(sink, now)
        tickets = self._tickets
        if self._longest_first and len(queries) > 1:
            order = _longest_first(works, self._longest_first)
            self._waiting.extend(Flight(next(tickets), queries[i], works[i], sink, tally, now) for i in order)
        else:
            self._waiting.extend(
                Flight(next(tickets), query, work, sink, tally, now) for query, work in zip(queries, works, strict=True)
            )

    def deal(self, now: float) -> Iterator[Flight]:
        """Queries that go out now, each to its ``server``; from the moment that it is handed out it flies."""
        waiting, pick, sent = self._waiting, self._policy.pick, self._policy.on_sent
        while waiting and (server := pick()) is not None:
            flight = waiting.popleft()
            flight.server = server
            flight.sent_at = now
            flight.tries += 1
            flight.tally.waited_s.append(now - flight.taken_at)
            self._flying[server][flight.ticket] = flight
            sent(server, flight.work)
            yield flight

    def first(self, server: int, ticket: int) -> Flight | None:
        """A first token came from ``server``; the query whose sink is to be told, or None."""
        flight = self._flying[server].get(ticket)
        if flight is None or flight.started:
            return None
        flight.started = True
        return flight

    def done(self, server: int, ticket: int, now: float, *, leaves: bool = True) -> Flight | None:
        """An end came from ``server``; the query whose sink is to be told, or None.

        Without ``leaves`` it takes up its place on the server until :meth:`left`: its connection is still in use.
        """
        flight = self._flying[server].pop(ticket, None)
        if flight is None:
            self.strays += 1
            return None
        flight.tally.done(server, flight.work, now)
        if leaves:
            self._policy.on_done(server, flight.work)
        return flight

    def left(self, flight: Flight) -> None:
        """A query that was :meth:`done` has left its server."""
        self._policy.on_done(flight.server, flight.work)

    def again(self, server: int, ticket: int) -> Flight | None:
        """``server`` broke off one query: it waits again where that is allowed (None), else it is handed out to end."""
        flight = self._land(server, ticket)
        if flight is None or self._wait_again(flight):
            return None
        return flight

    def take_out(self, server: int) -> None:
        """``server`` gets no more queries; those that it has may still end."""
        if not self._out[server]:
            self._out[server] = True
            self.alive -= 1
            self._policy.take_out(server)

    def lose(self, server: int) -> list[Flight]:
        """``server`` is lost; of its queries, those that are to end with an error. The others wait again."""
        self.take_out(server)
        lost = [self._land(server, ticket) for ticket in list(self._flying[server])]
        return [f for f in reversed(lost) if f is not None and not self._wait_again(f)][::-1]

    def end_all(self) -> list[Flight]:
        """All that waits or flies, to be ended with an error."""
        ended = list(self._waiting)
        self._waiting.clear()
        for server, flying in enumerate(self._flying):
            ended += [flight for ticket in list(flying) if (flight := self._land(server, ticket)) is not None]
        return ended

    def _land(self, server: int, ticket: int) -> Flight | None:
        flight = self._flying[server].pop(ticket, None)
        if flight is not None:
            self._policy.on_done(server, flight.work)
        return flight

    def _wait_again(self, flight: Flight) -> bool:
        allowed = self._retry is Retry.any or (self._retry is Retry.unstarted and not flight.started)
        if not allowed or not self.alive or flight.tries >= MOST_TRIES:
            return False
        flight.server = -1
        flight.tally.retried += 1
        self._waiting.appendleft(flight)
        return True

    def _tally_of(self, sink: Sink, now: float) -> Tally:
        if id(sink) not in self._tallies:  # the sink is kept, so that no other can have its id
            self._tallies[id(sink)] = sink, Tally(len(self._flying), now)
        return self._tallies[id(sink)][1]


def _longest_first(works: Sequence[int], copy: int) -> list[int]:
    """Places by falling work within each ``copy`` of them: MLPerf allows no sorting across copies of the data set."""
    values = np.asarray(works, dtype=np.int64)
    order = [begin + np.argsort(-values[begin : begin + copy], kind="stable") for begin in range(0, len(values), copy)]
    found: list[int] = np.concatenate(order).tolist()
    return found
