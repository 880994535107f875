"""Whose turn it is, and each query's one end, held against plain models under any order of events."""

from __future__ import annotations

import sys
import time
import types
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlperf_exp.errors import UserError
from mlperf_exp.messages import Query
from mlperf_exp.sut.routing import policy as policies
from mlperf_exp.sut.routing.policy import LeastOutstanding, RoundRobin
from mlperf_exp.sut.routing.router import MOST_TRIES, Flight, Retry, Router


class LeastOutstandingMachine(RuleBasedStateMachine):
    """Any sequence of queries, ends and losses; the model is a list of the work that each server holds."""

    @initialize(servers=st.integers(1, 5), capacity=st.integers(1, 4))
    def begin(self, servers: int, capacity: int) -> None:
        self.policy, self.capacity = LeastOutstanding(servers, capacity), capacity
        self.held: list[list[int]] = [[] for _ in range(servers)]
        self.last = list(range(-servers, 0))
        self.alive = set(range(servers))
        self.sent = 0

    @rule(work=st.integers(0, 3))
    def send(self, work: int) -> None:
        server = self.policy.pick()
        free = [s for s in self.alive if len(self.held[s]) < self.capacity]
        if not free:
            assert server is None
            return
        assert server == min(free, key=lambda s: (sum(self.held[s]), self.last[s]))
        self.policy.on_sent(server, work)
        self.held[server].append(work)
        self.last[server] = self.sent
        self.sent += 1

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from([s for s, held in enumerate(self.held) if held]))
        work = self.held[server].pop(data.draw(st.integers(0, len(self.held[server]) - 1)))
        self.policy.on_done(server, work)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if len(self.alive) > 1 or data.draw(st.integers(0, 9)) == 0:
            server = data.draw(st.integers(0, len(self.held) - 1))
            self.policy.take_out(server)
            self.alive.discard(server)

    @invariant()
    def agrees(self) -> None:
        for server, held in enumerate(self.held):
            assert self.policy.outstanding(server) == sum(held) >= 0


TestLeastOutstanding = LeastOutstandingMachine.TestCase
TestLeastOutstanding.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def send(turns: LeastOutstanding | RoundRobin, work: int) -> int:
    server = turns.pick()
    assert server is not None
    turns.on_sent(server, work)
    return server


def test_equals_take_turns() -> None:
    turns = LeastOutstanding(3, 10)
    assert [send(turns, 100) for _ in range(9)] == [0, 1, 2] * 3


def test_turns_go_on_when_every_query_ends_at_once() -> None:
    turns = LeastOutstanding(3, 10)
    order = []
    for _ in range(6):
        server = send(turns, 100)
        turns.on_done(server, 100)
        order.append(server)
    assert order == [0, 1, 2, 0, 1, 2]


def test_work_decides_and_not_the_number_of_queries() -> None:
    turns = LeastOutstanding(2, 10)
    assert send(turns, 2500) == 0
    assert [send(turns, 500) for _ in range(5)] == [1] * 5


def test_full_servers_are_passed_over_until_a_query_leaves() -> None:
    turns = LeastOutstanding(2, 1)
    assert [send(turns, 1), send(turns, 9)] == [0, 1]
    assert turns.pick() is None
    turns.on_done(1, 9)
    assert turns.pick() == 1


def test_more_cannot_leave_than_came() -> None:
    turns = LeastOutstanding(1, 4)
    turns.on_sent(0, 5)
    with pytest.raises(ValueError, match="does not hold"):
        turns.on_done(0, 6)
    turns.on_done(0, 5)
    with pytest.raises(ValueError, match="does not hold"):
        turns.on_done(0, 0)
    assert turns.outstanding(0) == 0


@pytest.mark.parametrize("kind", [LeastOutstanding, RoundRobin])
def test_no_server_costs_more_for_there_being_more(kind: type[LeastOutstanding] | type[RoundRobin]) -> None:
    """A look at all servers for each query would take 500 times as long."""

    def seconds(servers: int) -> float:
        turns = kind(servers, 2)
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(5000):
                server = send(turns, 100)
                turns.on_done(server, 100)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(2000) < 20 * seconds(4)


def test_round_robin_passes_over_the_full_and_the_lost() -> None:
    turns = RoundRobin(3, 2)
    assert [send(turns, 1) for _ in range(4)] == [0, 1, 2, 0]
    turns.take_out(1)
    assert send(turns, 1) == 2
    assert turns.pick() is None
    turns.on_done(0, 1)
    turns.on_done(1, 1)
    assert send(turns, 1) == 0
    assert turns.pick() is None


class Backwards(LeastOutstanding):
    """A hook: the last server that has room."""

    def pick(self) -> int | None:
        room = [server for server in range(len(self._work)) if self._available(server)]
        return room[-1] if room else None


def test_a_hook_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_routing")
    module.Backwards = Backwards  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_routing", module)
    router = Router(3, 1, routing="my_routing:Backwards")
    router.take([Query(row, 0) for row in range(4)], [1] * 4, Sink(), 0.0)  # type: ignore[arg-type]
    assert dealt(router) == [(0, 2), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fastest", "is no policy. Give one of least_outstanding, round_robin, or a class"),
        ("no.such.module:Class", "cannot be made: ModuleNotFoundError"),
        ("collections:Counter", "cannot be made: TypeError"),
        ("builtins:slice", "has no pick, on_sent, on_done, take_out"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(UserError, match=r"^backend\.routing: .*") as caught:
        Router(2, routing=name)
    assert says in str(caught.value)


class Sink:
    """What a sink would be told."""

    def __init__(self) -> None:
        self.first: Counter[int] = Counter()
        self.ends: Counter[int] = Counter()


class RouterMachine(RuleBasedStateMachine):
    """Any order of queries, tokens, ends, strays, broken queries and lost replicas, over one or two tests."""

    @initialize(
        servers=st.integers(1, 4),
        capacity=st.integers(1, 3),
        retry=st.sampled_from(Retry),
        copy=st.integers(0, 3),
        routing=st.sampled_from(sorted(policies.POLICIES)),
    )
    def begin(self, servers: int, capacity: int, retry: Retry, copy: int, routing: str) -> None:
        self.router = Router(servers, capacity, routing=routing, retry=retry, longest_first=copy)
        self.capacity, self.retry, self.servers = capacity, retry, servers
        self.sinks: list[Any] = [Sink(), Sink()]
        self.rows = [0, 0]
        self.flying: list[dict[int, Flight]] = [{} for _ in range(servers)]
        self.lost: set[int] = set()
        self.tries: Counter[tuple[int, int]] = Counter()
        self.now = 0.0

    def end(self, flight: Flight) -> None:
        flight.sink.ends[flight.row] += 1  # type: ignore[attr-defined]

    def pick(self, data: st.DataObject) -> tuple[int, int]:
        """A replica and a ticket: of a query that it has, or any."""
        server = data.draw(st.integers(0, self.servers - 1))
        have = sorted(self.flying[server])
        return server, data.draw(st.sampled_from(have) if have else st.integers(0, 50))

    @rule(works=st.lists(st.integers(0, 9), min_size=1, max_size=6), test=st.integers(0, 1))
    def take(self, works: list[int], test: int) -> None:
        first = self.rows[test]
        self.rows[test] += len(works)
        self.router.take([Query(first + i, i) for i in range(len(works))], works, self.sinks[test], self.now)

    @rule()
    def deal(self) -> None:
        for flight in self.router.deal(self.now):
            assert flight.server not in self.lost
            assert flight.ticket not in self.flying[flight.server]
            self.flying[flight.server][flight.ticket] = flight
            assert len(self.flying[flight.server]) <= self.capacity
            self.tries[self.sinks.index(flight.sink), flight.row] += 1
        if self.router.waiting:
            assert all(len(f) == self.capacity for s, f in enumerate(self.flying) if s not in self.lost)

    @rule(data=st.data())
    def first(self, data: st.DataObject) -> None:
        server, ticket = self.pick(data)
        if flight := self.router.first(server, ticket):
            assert ticket in self.flying[server]
            flight.sink.first[flight.row] += 1  # type: ignore[attr-defined]

    @rule(data=st.data(), leaves=st.booleans())
    def done(self, data: st.DataObject, leaves: bool) -> None:
        server, ticket = self.pick(data)
        self.now += 1
        flight = self.router.done(server, ticket, self.now, leaves=leaves)
        if flight and not leaves:
            self.router.left(flight)
        assert (flight is not None) == (ticket in self.flying[server])
        if flight:
            del self.flying[server][ticket]
            self.end(flight)

    @rule(data=st.data())
    def broken(self, data: st.DataObject) -> None:
        server, ticket = self.pick(data)
        if flight := self.router.again(server, ticket):
            self.end(flight)
        self.flying[server].pop(ticket, None)

    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        server = data.draw(st.integers(0, self.servers - 1))
        self.router.take_out(server)
        self.lost.add(server)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        server = data.draw(st.integers(0, self.servers - 1))
        for flight in self.router.lose(server):
            self.end(flight)
        self.lost.add(server)
        self.flying[server].clear()

    @invariant()
    def nothing_is_told_twice_or_lost(self) -> None:
        if not hasattr(self, "router"):
            return
        assert self.router.alive == self.servers - len(self.lost)
        assert all(count <= MOST_TRIES for count in self.tries.values())
        if self.retry is Retry.never:
            assert all(count == 1 for count in self.tries.values())
        ended = sum(sum(sink.ends.values()) for sink in self.sinks)
        assert self.router.outstanding == sum(self.rows) - ended
        for sink in self.sinks:
            assert not any(count > 1 for count in (*sink.ends.values(), *sink.first.values()))

    def teardown(self) -> None:
        if not hasattr(self, "router"):
            return
        for flight in self.router.end_all():
            self.end(flight)
        for sink, rows in zip(self.sinks, self.rows, strict=True):
            assert sink.ends == Counter(range(rows))
        assert self.router.outstanding == 0


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def dealt(router: Router) -> list[tuple[int, int]]:
    return [(flight.row, flight.server) for flight in router.deal(0.0)]


def test_an_offline_load_is_dealt_longest_first_within_each_copy_of_the_data_set() -> None:
    router = Router(1, longest_first=3)
    router.take([Query(row, row) for row in range(7)], [5, 9, 7, 1, 2, 3, 8], Sink(), 0.0)  # type: ignore[arg-type]
    assert [row for row, _ in dealt(router)] == [1, 2, 0, 5, 4, 3, 6]


def test_replicas_of_unequal_speed_end_together() -> None:
    """One of four is half as fast: by equal shares it would still work when the others had long been idle."""
    speeds, works = (1.0, 1.0, 1.0, 0.5), [20 + 37 * i % 80 for i in range(400)]
    router, sink = Router(4, 2, longest_first=400), Sink()
    router.take([Query(row, row) for row in range(400)], works, sink, 0.0)  # type: ignore[arg-type]
    free, running = [0.0] * 4, []  # each replica answers one query after the other
    now = 0.0
    while True:
        for flight in router.deal(now):
            free[flight.server] = max(free[flight.server], now) + flight.work / speeds[flight.server]
            running.append((free[flight.server], flight.server, flight.ticket))
        if not running:
            break
        running.sort()
        now, server, ticket = running.pop(0)
        assert router.done(server, ticket, now)
    tally = router.tally()
    assert tally is not None
    assert tally.tail_s(range(4)) < 0.04 * now
    assert tally.queries[3] < 0.6 * tally.queries[0]
    assert sum(tally.queries) == 400


def test_a_query_that_is_there_whenever_a_replica_dies_ends() -> None:
    router, sink = Router(5, retry=Retry.any), Sink()
    router.take([Query(0, 0)], [1], sink, 0.0)  # type: ignore[arg-type]
    deaths = 0
    while not sink.ends[0]:
        ((_, server),) = dealt(router)
        for flight in router.lose(server):
            sink.ends[flight.row] += 1
        deaths += 1
    assert deaths == MOST_TRIES
    assert router.alive == 3


def test_answers_that_come_after_the_loss_are_strays() -> None:
    router = Router(2, retry=Retry.any)
    router.take([Query(0, 0)], [1], Sink(), 0.0)  # type: ignore[arg-type]
    (flight,) = router.deal(0.0)
    lost = flight.server
    assert router.lose(lost) == []
    ((row, other),) = dealt(router)
    assert (row, other) == (0, 1 - lost)
    assert router.done(lost, flight.ticket, 1.0) is None
    assert router.done(other, flight.ticket, 1.0) is flight
    assert router.strays == 1
