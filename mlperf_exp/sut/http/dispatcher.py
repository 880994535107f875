"""Sends queries to servers and sees each to its end. Lives on one event loop, and is called on its thread only.

No query is ever sent twice: a fault is an error of its query, which MLPerf's rules make the run answer for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.messages import Completion, Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.http.completions import Client, Exchange, ExchangeError
from mlperf_exp.sut.http.router import Router

_log = logging.getLogger(__name__)

LOST_AFTER = 20  # so many failed queries in a row, and a server gets no more
_END_S = 5.0


class _Flight(Exchange):
    """A query that was sent: it completes exactly once, whoever ends it."""

    __slots__ = ("done", "expired", "sent_at", "server", "sink", "task", "work")

    def __init__(self, row: int, sink: Sink, server: int, work: int, sent_at: float) -> None:
        super().__init__(row)
        self.sink, self.server, self.work, self.sent_at = sink, server, work, sent_at
        self.task: asyncio.Task[None] | None = None
        self.expired: str | None = None  # the limit that it ran past
        self.done = False

    def on_first_token(self) -> None:
        if not self.done:
            self.sink.first_token((self.row,))

    def on_complete(self, completion: Completion) -> None:
        if not self.done:
            self.done = True
            self.sink.complete((completion,))

    def fail(self, error: str) -> None:
        self.on_complete(Completion(self.row, error=error))


class Dispatcher:
    """Keeps the queries that wait and those that fly.

    Args:
        client: what talks to the servers; closed with this object.
        config: the limits.
        servers: of each server, its base URL and the end of every request's body.
        prompts: of each sample, the start of a request's body and its work in tokens.
    """

    def __init__(
        self,
        client: Client,
        config: OpenaiBackend,
        servers: Sequence[tuple[str, bytes]],
        prompts: Sequence[tuple[bytes, int]],
    ) -> None:
        self._client, self._config, self._servers, self._prompts = client, config, servers, prompts
        self._router = Router(len(servers), config.connections)
        self._failures = [0] * len(servers)  # in a row
        self._heard_at = [0.0] * len(servers)  # last byte on any connection, by the loop's clock
        self._losses: list[str] = []
        self._pending: deque[tuple[Query, Sink]] = deque()
        self._flights: set[_Flight] = set()
        self._told: list[Sink] = []  # sinks that know that all is lost
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def take(self, queries: Sequence[Query], sink: Sink) -> None:
        """Accept queries; :meth:`dispatch` sends them."""
        self._pending.extend((query, sink) for query in queries)

    async def close(self) -> None:
        """Complete what is outstanding with the error "stopped"."""
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        self._end_all("stopped")
        self._watcher.cancel()
        await asyncio.wait([*tasks, self._watcher], timeout=_END_S)

    def dispatch(self) -> None:
        """Send what is waiting, as far as the servers have room."""
        if not self._router.alive:
            self._fail_all()
            return
        loop = asyncio.get_running_loop()
        while self._pending and (server := self._router.pick()) is not None:
            query, sink = self._pending.popleft()
            if not 0 <= query.sample < len(self._prompts):
                sink.complete((Completion(query.row, error=f"there is no sample {query.sample}"),))
                continue
            prompt, work = self._prompts[query.sample]
            now = loop.time()
            if not self._router.outstanding(server):
                self._heard_at[server] = now  # it had no reason to say anything
            flight = _Flight(query.row, sink, server, work, now)
            self._router.on_sent(server, work)
            self._flights.add(flight)
            base, tail = self._servers[server]
            flight.task = loop.create_task(self._fly(flight, base, prompt + tail))
            flight.task.add_done_callback(partial(self._landed, flight))

    async def _fly(self, flight: _Flight, base: str, body: bytes) -> None:
        try:
            await self._client.complete(base, body, flight)
        except ExchangeError as fault:
            flight.fail(fault.line)
            self._count_fault(flight.server, fault)
        except Exception as error:
            _log.exception("a query ended in an unexpected error")
            flight.fail(self._client.clean(f"unexpected {type(error).__name__}: {error}"))
        else:
            self._failures[flight.server] = 0

    def _landed(self, flight: _Flight, _task: asyncio.Task[None]) -> None:
        """The end of every flight, also of one that was cancelled before it began."""
        if flight.expired is not None and not flight.done:
            line = f"{self._servers[flight.server][0]} {flight.expired}"
            flight.fail(line)
            if flight.last_byte_at is None:
                self._count_fault(flight.server, ExchangeError(line, reached=False))
        flight.fail("stopped")
        self._flights.discard(flight)
        self._router.on_done(flight.server, flight.work)
        if self._pending:
            self.dispatch()

    async def _watch(self) -> None:
        """Ends flights that ran past a limit. One sweep over all costs less than a timer for each chunk."""
        idle, whole = self._config.idle_timeout_s, self._config.request_timeout_s
        pause = min(1.0, idle / 10, whole / 10)
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(pause)
            now = clock()
            for flight in self._flights:
                if flight.last_byte_at is not None and flight.last_byte_at > self._heard_at[flight.server]:
                    self._heard_at[flight.server] = flight.last_byte_at
            for flight in tuple(self._flights):
                silent_since = flight.last_byte_at if flight.started else self._heard_at[flight.server]
                if now - flight.sent_at > whole:
                    flight.expired = f"did not finish the query within {whole:g} s (backend.request_timeout_s)"
                elif silent_since is not None and now - max(silent_since, flight.sent_at) > idle:
                    flight.expired = f"sent nothing for {idle:g} s (backend.idle_timeout_s)"
                else:
                    continue
                if flight.task is not None:
                    flight.task.cancel()

    def _count_fault(self, server: int, fault: ExchangeError) -> None:
        """Take a server out that cannot be reached, or that fails while others do not; without one, all is lost."""
        if not fault.against_server:
            self._failures[server] = 0
            return
        self._failures[server] += 1
        if self._router.is_out(server) or not (fault.refused or self._failures[server] >= LOST_AFTER):
            return
        # The last server that still answers keeps its queries, even if it answers with errors: they are counted.
        if fault.reached and self._router.alive == 1:
            return
        self._router.take_out(server)
        self._losses.append(fault.line)
        _log.warning("no more queries for %s: %s", self._servers[server][0], fault.line)
        if not self._router.alive:
            self._fail_all()

    def _fail_all(self) -> None:
        """No server is left: everything outstanding ends with an error, and each sink is told once."""
        more = f" (and {len(self._losses) - 3} more)" if len(self._losses) > 3 else ""
        reason = f"no server is left: {'; '.join(self._losses[:3])}{more}"
        sinks = self._end_all(reason)
        for sink in sinks:
            if not any(sink is told for told in self._told):
                self._told.append(sink)
                sink.failed(reason)

    def _end_all(self, error: str) -> list[Sink]:
        """Complete all that is outstanding with ``error``; returns the sinks that this met."""
        rows: dict[int, tuple[Sink, list[Completion]]] = {}
        for query, sink in self._pending:
            rows.setdefault(id(sink), (sink, []))[1].append(Completion(query.row, error=error))
        self._pending.clear()
        for flight in tuple(self._flights):
            rows.setdefault(id(flight.sink), (flight.sink, []))
            flight.fail(error)
            if flight.task is not None:
                flight.task.cancel()
        for sink, completions in rows.values():
            if completions:
                sink.complete(completions)
        return [sink for sink, _ in rows.values()]
