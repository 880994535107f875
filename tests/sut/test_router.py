"""Routing by least outstanding work, held against a plain model."""

from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlperf_exp.sut.http.router import Router


class RouterMachine(RuleBasedStateMachine):
    """Any sequence of queries, ends and losses; the model is a list of the work that each server holds."""

    @initialize(servers=st.integers(1, 5), capacity=st.integers(1, 4))
    def begin(self, servers: int, capacity: int) -> None:
        self.router, self.capacity = Router(servers, capacity), capacity
        self.held: list[list[int]] = [[] for _ in range(servers)]
        self.last = list(range(-servers, 0))
        self.alive = set(range(servers))
        self.sent = 0

    @rule(work=st.integers(0, 3))
    def send(self, work: int) -> None:
        server = self.router.pick()
        free = [s for s in self.alive if len(self.held[s]) < self.capacity]
        if not free:
            assert server is None
            return
        assert server == min(free, key=lambda s: (sum(self.held[s]), self.last[s]))
        self.router.on_sent(server, work)
        self.held[server].append(work)
        self.last[server] = self.sent
        self.sent += 1

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from([s for s, held in enumerate(self.held) if held]))
        work = self.held[server].pop(data.draw(st.integers(0, len(self.held[server]) - 1)))
        self.router.on_done(server, work)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if len(self.alive) > 1 or data.draw(st.integers(0, 9)) == 0:
            server = data.draw(st.integers(0, len(self.held) - 1))
            self.router.take_out(server)
            self.alive.discard(server)

    @invariant()
    def agrees(self) -> None:
        for server, held in enumerate(self.held):
            assert self.router.outstanding(server) == sum(held) >= 0
            assert self.router.is_out(server) == (server not in self.alive)
        assert self.router.alive == len(self.alive)


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def send(router: Router, work: int) -> int:
    server = router.pick()
    assert server is not None
    router.on_sent(server, work)
    return server


def test_equals_take_turns() -> None:
    router = Router(3, 10)
    assert [send(router, 100) for _ in range(9)] == [0, 1, 2] * 3


def test_turns_go_on_when_every_query_ends_at_once() -> None:
    router = Router(3, 10)
    order = []
    for _ in range(6):
        server = send(router, 100)
        router.on_done(server, 100)
        order.append(server)
    assert order == [0, 1, 2, 0, 1, 2]


def test_work_decides_and_not_the_number_of_queries() -> None:
    router = Router(2, 10)
    assert send(router, 2500) == 0
    assert [send(router, 500) for _ in range(5)] == [1] * 5


def test_full_servers_are_passed_over_until_a_query_leaves() -> None:
    router = Router(2, 1)
    assert [send(router, 1), send(router, 9)] == [0, 1]
    assert router.pick() is None
    router.on_done(1, 9)
    assert router.pick() == 1


def test_more_cannot_leave_than_came() -> None:
    router = Router(1, 4)
    router.on_sent(0, 5)
    with pytest.raises(ValueError, match="does not hold"):
        router.on_done(0, 6)
    router.on_done(0, 5)
    with pytest.raises(ValueError, match="does not hold"):
        router.on_done(0, 0)
    assert router.outstanding(0) == 0


def test_a_thousand_servers_cost_little() -> None:
    router = Router(1000, 64)
    started = time.perf_counter()
    held = []
    for i in range(50_000):
        held.append((send(router, 700 + i % 97), 700 + i % 97))
        if i % 3:
            router.on_done(*held.pop(i * 7919 % len(held)))
    # A look at all servers for each query takes more than ten times as long.
    assert time.perf_counter() - started < 2.0
