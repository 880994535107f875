"""Sends queries to servers and sees each to its end. Lives on one event loop, and is called on its thread only.

A fault is an error of its query, which MLPerf's rules make the run answer for; only where the connection broke and
the scenario allows it is the query sent to another server, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.messages import Completion, Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.http.completions import Client, Exchange, ExchangeError
from mlperf_exp.sut.routing.router import Flight, Retry, Router

_log = logging.getLogger(__name__)

LOST_AFTER = 20  # so many failed queries in a row, and a server gets no more
_END_S = 5.0


class _Sent(Exchange):
    """A query that was sent to a server."""

    __slots__ = ("_clock", "_router", "ended", "expired", "flight", "sent_at", "silent", "task")

    def __init__(self, flight: Flight, router: Router, now: float) -> None:
        super().__init__(flight.row)
        self.flight, self._router, self.sent_at = flight, router, now
        self._clock = asyncio.get_running_loop().time
        self.task: asyncio.Task[None] | None = None
        self.expired: str | None = None  # the limit that it ran past
        self.silent = False  # and that limit is that of silence
        self.ended = False  # its sink was told

    def on_first_token(self) -> None:
        if self._router.first(self.flight.server, self.flight.ticket):
            self.flight.sink.first_token((self.row,))

    def on_complete(self, completion: Completion) -> None:
        # Its place on the server is free when the connection is: see Dispatcher._landed.
        if self._router.done(self.flight.server, self.flight.ticket, self._clock(), leaves=False):
            self.ended = True
            self.flight.sink.complete((completion,))

    def fail(self, error: str) -> None:
        self.on_complete(Completion(self.row, error=error))


class Dispatcher:
    """Gives queries to servers by the router, and watches over those that were sent.

    Args:
        client: what talks to the servers; closed with this object.
        config: the limits.
        servers: of each server, its base URL and the end of every request's body.
        prompts: of each sample, the start of a request's body and its work in tokens.
        retry: which queries may go to another server when a connection breaks.
        longest_first: see :class:`Router`.
    """

    def __init__(
        self,
        client: Client,
        config: OpenaiBackend,
        servers: Sequence[tuple[str, bytes]],
        prompts: Sequence[tuple[bytes, int]],
        retry: Retry = Retry.never,
        longest_first: int = 0,
    ) -> None:
        self._client, self._config, self._servers, self._prompts = client, config, servers, prompts
        self.router = Router(
            len(servers), config.connections, routing=config.routing, retry=retry, longest_first=longest_first
        )
        self._failures = [0] * len(servers)  # in a row
        self._heard_at = [0.0] * len(servers)  # last byte on any connection, by the loop's clock
        self.losses: list[str] = []
        self._sent: set[_Sent] = set()
        self._told: list[Sink] = []  # sinks that know that all is lost
        self._clock = asyncio.get_running_loop().time
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def take(self, queries: Sequence[Query], sink: Sink) -> None:
        """Accept queries; :meth:`dispatch` sends them."""
        known = [query for query in queries if 0 <= query.sample < len(self._prompts)]
        if len(known) < len(queries):
            strange = [query for query in queries if not 0 <= query.sample < len(self._prompts)]
            sink.complete([Completion(query.row, error=f"there is no sample {query.sample}") for query in strange])
        self.router.take(known, [self._prompts[query.sample][1] for query in known], sink, self._clock())

    async def close(self) -> None:
        """Complete what is outstanding with the error "stopped"."""
        tasks = [sent.task for sent in self._sent if sent.task is not None]
        self._end_all("stopped")
        self._watcher.cancel()
        await asyncio.wait([*tasks, self._watcher], timeout=_END_S)

    def dispatch(self) -> None:
        """Send what is waiting, as far as the servers have room."""
        if not self.router.alive:
            self._fail_all()
            return
        now, loop = self._clock(), asyncio.get_running_loop()
        for flight in self.router.deal(now):
            server = flight.server
            if self.router.holds(server) == 1:
                self._heard_at[server] = now  # it had no reason to say anything
            sent = _Sent(flight, self.router, now)
            self._sent.add(sent)
            base, tail = self._servers[server]
            sent.task = loop.create_task(self._fly(sent, base, self._prompts[flight.sample][0] + tail))
            sent.task.add_done_callback(partial(self._landed, sent, server))

    async def _fly(self, sent: _Sent, base: str, body: bytes) -> None:
        server = sent.flight.server
        try:
            await self._client.complete(base, body, sent)
        except ExchangeError as fault:
            self._fault(sent, fault)
            self._count_fault(sent, fault)
        except Exception as error:
            _log.exception("a query ended in an unexpected error")
            sent.fail(self._client.clean(f"unexpected {type(error).__name__}: {error}"))
        else:
            self._failures[server] = 0

    def _fault(self, sent: _Sent, fault: ExchangeError) -> None:
        """End a query, or let it wait for another server."""
        if sent.ended:
            return
        if not fault.broken:
            sent.fail(fault.line)
        elif (flight := self.router.again(sent.flight.server, sent.flight.ticket)) is not None:
            flight.sink.complete((Completion(flight.row, error=fault.line),))

    def _landed(self, sent: _Sent, server: int, _task: asyncio.Task[None]) -> None:
        """The end of every exchange, also of one that was cancelled before it began."""
        if sent.expired is not None and not sent.ended:
            fault = ExchangeError(
                f"{self._servers[server][0]} {sent.expired}",
                reached=sent.last_byte_at is not None,
                broken=sent.silent,
            )
            self._fault(sent, fault)
            if not fault.reached:
                self._count_fault(sent, fault)
        self._sent.discard(sent)
        if sent.ended:
            self.router.left(sent.flight)
        if self.router.waiting:
            self.dispatch()

    async def _watch(self) -> None:
        """Ends exchanges that ran past a limit. One sweep over all costs less than a timer for each chunk."""
        idle, whole = self._config.idle_timeout_s, self._config.request_timeout_s
        pause = min(1.0, idle / 10, whole / 10)
        while True:
            await asyncio.sleep(pause)
            now = self._clock()
            for sent in self._sent:
                server = sent.flight.server
                if sent.last_byte_at is not None and sent.last_byte_at > self._heard_at[server]:
                    self._heard_at[server] = sent.last_byte_at
            for sent in tuple(self._sent):
                silent_since = sent.last_byte_at if sent.started else self._heard_at[sent.flight.server]
                if now - sent.sent_at > whole:
                    sent.expired = f"did not finish the query within {whole:g} s (backend.request_timeout_s)"
                elif silent_since is not None and now - max(silent_since, sent.sent_at) > idle:
                    sent.silent = True
                    sent.expired = f"sent nothing for {idle:g} s (backend.idle_timeout_s)"
                else:
                    continue
                if sent.task is not None:
                    sent.task.cancel()

    def _count_fault(self, sent: _Sent, fault: ExchangeError) -> None:
        """Take a server out that cannot be reached, or that fails while others do not; without one, all is lost."""
        server = sent.flight.server
        if not fault.against_server:
            self._failures[server] = 0
            return
        self._failures[server] += 1
        if self.router.is_out(server) or not (fault.refused or self._failures[server] >= LOST_AFTER):
            return
        # The last server that still answers keeps its queries, even if it answers with errors: they are counted.
        if fault.reached and self.router.alive == 1:
            return
        self.router.take_out(server)
        self.losses.append(fault.line)
        _log.warning("no more queries for %s: %s", self._servers[server][0], fault.line)
        if not self.router.alive:
            self._fail_all(sent.flight.sink)

    def _fail_all(self, *met: Sink) -> None:
        """No server is left: all that is outstanding ends with an error; its sinks, and ``met``, are told once each."""
        more = f" (and {len(self.losses) - 3} more)" if len(self.losses) > 3 else ""
        reason = f"no server is left: {'; '.join(self.losses[:3])}{more}"
        for sink in [*met, *self._end_all(reason)]:
            if not any(sink is told for told in self._told):
                self._told.append(sink)
                sink.failed(reason)

    def _end_all(self, error: str) -> list[Sink]:
        """Complete all that is outstanding with ``error``; returns the sinks that this met."""
        rows: dict[int, tuple[Sink, list[Completion]]] = {}
        for flight in self.router.end_all():
            rows.setdefault(id(flight.sink), (flight.sink, []))[1].append(Completion(flight.row, error=error))
        for sent in tuple(self._sent):
            if sent.task is not None:
                sent.task.cancel()
        for sink, completions in rows.values():
            sink.complete(completions)
        return [sink for sink, _ in rows.values()]
