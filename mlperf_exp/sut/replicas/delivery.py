"""What replicas answer, told to the sinks of the queries: each query once, whatever comes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from mlperf_exp.messages import Answers, Completion
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.replicas import wire
from mlperf_exp.sut.routing.router import Flight, Router


class Delivery:
    """From the replicas' messages, by the router's book, to the sinks; times are the loop's, in seconds."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def answers(self, replica: int, message: wire.Answers, now: float) -> None:
        """First tokens and ends."""
        router = self._router
        firsts: dict[int, tuple[Sink, list[int], list[int]]] = {}
        for ticket, token in zip(message.first, message.first_ids, strict=True):
            if (flight := router.first(replica, ticket)) is not None:
                _, rows, ids = firsts.setdefault(id(flight.sink), (flight.sink, [], []))
                rows.append(flight.row)
                ids.append(token)
        for sink, rows, ids in firsts.values():
            sink.first_token(rows, ids)
        ends: dict[int, tuple[Sink, list[Completion]]] = {}
        for done in message.done:
            if (flight := router.done(replica, done.ticket, now)) is not None:
                flight.tally.way_s.append(now - flight.sent_at - done.held_us / 1e6)
                tokens = array("i")
                tokens.frombytes(done.tokens)
                _, completions = ends.setdefault(id(flight.sink), (flight.sink, []))
                completions.append(Completion(flight.row, tokens, done.error, done.n_tokens))
        for sink, completions in ends.values():
            sink.complete(completions)

    def many(self, replica: int, message: wire.Many, now: float) -> None:
        """Ends of many queries in arrays."""
        router = self._router
        tickets = np.frombuffer(message.tickets, dtype=np.int64).tolist()
        held = np.frombuffer(message.held_us, dtype=np.int64).tolist()
        flights: list[Flight] = []
        for ticket, held_us in zip(tickets, held, strict=True):
            if (flight := router.done(replica, ticket, now)) is not None:
                flight.tally.way_s.append(now - flight.sent_at - held_us / 1e6)
                flights.append(flight)
        offsets = np.frombuffer(message.offsets, dtype=np.int64)
        data = np.frombuffer(message.data, dtype=np.uint8)
        if flights and len(flights) == len(tickets) and all(f.sink is flights[0].sink for f in flights):
            rows = np.array([flight.row for flight in flights], dtype=np.int64)
            flights[0].sink.complete_many(Answers(rows, data, offsets))
            return
        known = {flight.ticket: flight for flight in flights}
        for place, ticket in enumerate(tickets):
            if (known_flight := known.get(ticket)) is not None:
                row = np.array([known_flight.row], dtype=np.int64)
                piece = Answers(row, data, np.ascontiguousarray(offsets[place : place + 2]))
                known_flight.sink.complete_many(piece)


def end(flights: Iterable[Flight], error: str) -> list[Sink]:
    """End these queries with an error; the sinks that were told."""
    ends: dict[int, tuple[Sink, list[Completion]]] = {}
    for flight in flights:
        ends.setdefault(id(flight.sink), (flight.sink, []))[1].append(Completion(flight.row, error=error))
    for sink, completions in ends.values():
        sink.complete(completions)
    return [sink for sink, _ in ends.values()]
