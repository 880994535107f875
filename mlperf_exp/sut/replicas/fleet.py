"""Several replicas of one engine as one system under test.

One thread runs an event loop with all connections and the router. ``submit`` only queues; the loop deals the queries
out, and tells the sink of first tokens and ends as they come. Ray, which placed the replicas, is not on that way.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import secrets
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlperf_exp.client import Lag
from mlperf_exp.config import SimulatedBackend, TorchBackend, VllmBackend
from mlperf_exp.errors import ExperimentError, RunFailed, UserError
from mlperf_exp.files import write_json
from mlperf_exp.layout import layout
from mlperf_exp.messages import Answers, Completion, Plan, Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.replicas import wire
from mlperf_exp.sut.replicas.links import Links
from mlperf_exp.sut.replicas.placer import Launch, OnEvent, Placer, Places, Renew
from mlperf_exp.sut.routing import rules
from mlperf_exp.sut.routing.router import Flight, Router

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_START_S = 1800.0  # for backends without a limit of their own
_STOP_S = 20.0
_LOAD_S = 600.0
_TAIL_LINES = 5
_SPARE = 1.25  # queries on a replica for each that it answers at a time: the next ones are there when it has room


class Fleet:
    """See the module; the plan's ``backend.replicas`` copies of its engine, put in their places by ``placer``."""

    def __init__(self, plan: Plan, model: Path | None, placer: Callable[[OnEvent], Places] = Placer) -> None:
        backend = plan.config.backend
        self._plan, self._count = plan, int(backend.replicas)
        self._model = model.absolute() if model is not None else None
        self._layout = layout(plan)
        self._folder = plan.run_dir / "replicas"
        self.lag = Lag()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._placer = placer(self._event)
        self._inbox: deque[tuple[Sequence[Query], Sink]] = deque()
        self._woken = False
        self._ending: str | None = "not started"  # why queries are not taken

        # Of the loop's thread alone, once it runs.
        self._links: Links | None = None
        self._router: Router | None = None
        self._works: list[int] = []
        self._nodes: list[str] = []
        self._tails: list[deque[str]] = [deque(maxlen=_TAIL_LINES) for _ in range(self._count)]
        self._losses: list[str] = []
        self._told: list[Sink] = []
        self._placed: asyncio.Future[dict[str, Any]] | None = None
        self._phases: dict[int, dict[str, float]] = {}
        self._all: asyncio.Future[None] | None = None  # all replicas have started, or were renewed
        self._missing: set[int] = set()  # of which that is still awaited
        self._loading: dict[int, asyncio.Future[str | None]] = {}

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        """Place the replicas, start their engines and warm them up; the phases are those of the slowest.

        Raises:
            UserError, RunFailed: one did not start; the node and the end of its log are named.
        """
        began = time.perf_counter()
        self._folder.mkdir(exist_ok=True)
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._thread.start()
        try:
            self._call(self._open(samples), getattr(self._plan.config.backend, "start_timeout_s", _START_S))
        except BaseException:
            self.stop()
            raise
        self._loop.call_soon_threadsafe(self.lag.watch, self._loop)
        self._ending = None
        warmup_s = max((phases.get("warmup_s", 0.0) for phases in self._phases.values()), default=0.0)
        return {"start_s": time.perf_counter() - began - warmup_s, "warmup_s": warmup_s}

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        """Queue the queries; the loop is woken once for all that came since it last looked."""
        if self._ending is not None or self._loop is None:
            sink.complete([Completion(query.row, error=self._ending) for query in queries])
            return
        self._inbox.append((queries, sink))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def load(self, samples: Sequence[int]) -> None:
        """See :class:`mlperf_exp.sut.base.HoldsSamples`."""
        self._call(self._load(list(samples), True), _LOAD_S)

    def unload(self, samples: Sequence[int]) -> None:
        """See :class:`mlperf_exp.sut.base.HoldsSamples`."""
        self._call(self._load(list(samples), False), _LOAD_S)

    def reset(self, samples: Sequence[Any]) -> None:
        """Reset every replica; see :class:`mlperf_exp.sut.base.SystemUnderTest`."""
        if self._losses:
            raise RunFailed(f"it can serve no more: {self._losses[0]}")
        self._call(self._renew(samples), getattr(self._plan.config.backend, "start_timeout_s", _START_S))

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """See :class:`mlperf_exp.sut.base.Reports`; also keeps ``replicas/replicas.json``."""
        router = self._router
        if router is None:
            return {}, ()
        alive = [replica for replica in range(self._count) if not router.is_out(replica)]
        tally = router.tally()
        rows = [
            {"replica": replica, "node": self._nodes[replica], "lost": replica not in alive}
            | ({"queries": tally.queries[replica], "tokens": tally.work[replica]} if tally else {})
            for replica in range(self._count)
        ]
        write_json(self._folder / "replicas.json", {"replicas": rows, "losses": self._losses})
        figures = {"replicas": float(self._count), "replicas_lost": float(self._count - len(alive))}
        return figures | (tally.metrics(alive) if tally else {}), tuple(f"{loss}." for loss in self._losses[:3])

    def stop(self) -> None:
        """End the replicas, and Ray where it is the run's own; what is outstanding completes with an error."""
        self._ending = self._ending or "stopped"
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._hang_up(), loop).result(_STOP_S + 5)
        self._placer.stop()
        if loop is not None and thread is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._close(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)

    def _call(self, coroutine: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        if self._loop is None:
            coroutine.close()
            raise RunFailed("the replicas were stopped")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            waits = ", ".join(map(self._named, sorted(self._missing)[:4])) or "Ray"
            raise RunFailed(f"within {timeout_s:g} s no word came from {waits} (backend.start_timeout_s)") from None
        finally:
            future.cancel()

    # What follows runs on the loop's thread.

    async def _open(self, samples: Sequence[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._placed, self._all = loop.create_future(), loop.create_future()
        self._missing = set(range(self._count))
        config = self._plan.config
        self._works = [_work(sample, config.model) for sample in samples]
        self._router = Router(
            self._count,
            config.backend.replica_queries or _capacity(self._plan),
            routing=config.backend.routing,
            retry=rules.retry(config.scenario.name),
            longest_first=rules.longest_first(self._plan, len(samples)),
        )
        tokens = tuple(secrets.token_hex(32) for _ in range(self._count))
        self._links = Links(
            tokens,
            config.ray.heartbeat_timeout_s,
            on_hello=self._hello,
            on_message=self._message,
            on_gone=self._gone,
        )
        self._placer.start(self._layout, config.ray.address, config.ray.timeout_s, self._plan.run_dir / "ray.log")
        placed = await self._placed
        self._nodes = [placed["nodes"][self._layout.node_of(replica)] for replica in range(self._count)]
        here = all(address == placed["own"] for address in placed["addresses"])
        host = "127.0.0.1" if here else placed["own"]
        port = await self._links.listen(host)
        one = replace(self._plan, config=replace(config, backend=replace(config.backend, replicas=1)))
        self._placer.ask(Launch(one, self._model, samples, (host, port), tokens))
        await self._all
        self._links.watch()

    async def _renew(self, samples: Sequence[Any]) -> None:
        assert self._router is not None
        self._all = asyncio.get_running_loop().create_future()
        self._missing = set(range(self._count))
        self._works = [_work(sample, self._plan.config.model) for sample in samples]
        self._placer.ask(Renew(samples))
        await self._all
        self._router.forget()

    async def _load(self, samples: list[int], wanted: bool) -> None:
        assert self._links is not None
        loop = asyncio.get_running_loop()
        self._loading = {replica: loop.create_future() for replica in self._links.connected()}
        self._links.send_all(wire.Load(samples, wanted))
        for replica, future in list(self._loading.items()):
            if error := await future:
                raise RunFailed(f"{self._named(replica)}: {error}")

    def _take(self) -> None:
        self._woken = False  # before looking: what comes from now on wakes the loop again
        router = self._router
        assert router is not None
        assert self._loop is not None
        now = self._loop.time()
        works = self._works
        while self._inbox:
            queries, sink = self._inbox.popleft()
            router.take(queries, [works[query.sample] for query in queries], sink, now)
        self._deal()

    def _deal(self) -> None:
        assert self._router is not None
        assert self._links is not None
        assert self._loop is not None
        if not self._router.alive:
            self._fail_all()
            return
        frames: dict[int, tuple[list[int], list[int]]] = {}
        for flight in self._router.deal(self._loop.time()):
            tickets, samples = frames.setdefault(flight.server, ([], []))
            tickets.append(flight.ticket)
            samples.append(flight.sample)
        for server, (tickets, samples) in frames.items():
            self._links.send(server, wire.Work(tickets, samples))

    def _hello(self, hello: wire.Hello) -> None:
        self._nodes[hello.replica] = hello.node

    def _message(self, replica: int, message: wire.FromReplica) -> None:
        if isinstance(message, wire.Answers):
            self._answers(replica, message)
        elif isinstance(message, wire.Many):
            self._many(replica, message)
        elif isinstance(message, wire.Log):
            self._keep_log(replica, message.text)
        elif isinstance(message, wire.Lost) and self._links is not None:
            self._links.gone(replica, message.reason)
        elif isinstance(message, wire.Loaded) and replica in self._loading and not self._loading[replica].done():
            self._loading[replica].set_result(message.error)

    def _answers(self, replica: int, message: wire.Answers) -> None:
        router = self._router
        assert router is not None
        assert self._loop is not None
        now = self._loop.time()
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
        if router.waiting:
            self._deal()

    def _many(self, replica: int, message: wire.Many) -> None:
        router = self._router
        assert router is not None
        assert self._loop is not None
        now = self._loop.time()
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
        else:
            known = {flight.ticket: flight for flight in flights}
            for place, ticket in enumerate(tickets):
                if (known_flight := known.get(ticket)) is not None:
                    piece = Answers(
                        np.array([known_flight.row], dtype=np.int64),
                        data,
                        np.ascontiguousarray(offsets[place : place + 2]),
                    )
                    known_flight.sink.complete_many(piece)
        if router.waiting:
            self._deal()

    def _gone(self, replica: int, why: str) -> None:
        """A replica is lost: its queries go to others where that is allowed, else they end with an error."""
        if (future := self._loading.get(replica)) is not None and not future.done():
            future.set_result(why)
        if self._ending is not None and self._ending != "not started":
            return  # it was told to hang up
        if self._all is not None and not self._all.done():
            self._not_started(replica, why)
            return
        reason = f"{self._named(replica)} was lost: {why}"
        self._losses.append(reason)
        _log.warning("%s", reason)
        assert self._router is not None
        ends: dict[int, tuple[Sink, list[Completion]]] = {}
        for flight in self._router.lose(replica):
            ends.setdefault(id(flight.sink), (flight.sink, []))[1].append(Completion(flight.row, error=reason))
        for sink, completions in ends.values():
            sink.complete(completions)
        if not self._router.alive:
            self._fail_all()
        elif self._router.waiting:
            self._deal()

    def _not_started(self, replica: int, why: str) -> None:
        assert self._all is not None
        if not self._all.done():
            log = self._folder / f"{replica}.log"
            ending = " | ".join(self._tails[replica])
            said = f"; its log ends: {ending}" if ending else ""
            self._all.set_exception(RunFailed(f"{self._named(replica)} did not start: {why}{said} (see {log})"))

    def _fail_all(self) -> None:
        """No replica is left: everything outstanding ends with an error, and each sink is told once."""
        more = f" (and {len(self._losses) - 2} more)" if len(self._losses) > 2 else ""
        reason = f"no replica is left: {'; '.join(self._losses[:2])}{more}"
        for sink in self._end_all(reason):
            if not any(sink is told for told in self._told):
                self._told.append(sink)
                sink.failed(reason)

    def _end_all(self, error: str) -> list[Sink]:
        assert self._router is not None
        ends: dict[int, tuple[Sink, list[Completion]]] = {}
        for flight in self._router.end_all():
            ends.setdefault(id(flight.sink), (flight.sink, []))[1].append(Completion(flight.row, error=error))
        for sink, completions in ends.values():
            sink.complete(completions)
        return [sink for sink, _ in ends.values()]

    def _event(self, event: dict[str, Any]) -> None:
        """A word of the placer, on its thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_event, event)

    def _on_event(self, event: dict[str, Any]) -> None:
        kind, replica = event["event"], event.get("replica", -1)
        assert self._placed is not None
        assert self._all is not None
        if kind == "placed" and not self._placed.done():
            self._placed.set_result(event)
        elif kind in ("started", "renewed"):
            self._phases[replica] = event.get("phases") or {}
            self._missing.discard(replica)
            if not self._missing and not self._all.done():
                self._all.set_result(None)
        elif kind == "failed" and not self._all.done():
            if "user" in event:
                self._all.set_exception(UserError(*event["user"]))
            else:
                self._not_started(replica, event["error"])
        elif kind == "died" and self._links is not None:
            if replica in self._links.connected():
                self._links.gone(replica, event["error"])
            else:
                self._not_started(replica, event["error"])
        elif kind in ("refused", "ended"):
            self._over(event)

    def _over(self, event: dict[str, Any]) -> None:
        """Ray refused, or its process ended: fatal before all replicas run; later they go on without it."""
        assert self._placed is not None
        assert self._all is not None
        words = event.get("error") or f"the process that speaks to Ray ended with status {event.get('status')}"
        error: ExperimentError = RunFailed(f"{words} (see {self._plan.run_dir / 'ray.log'})")
        if "user" in event:
            error = UserError(*event["user"])
        for future in (self._placed, self._all):
            if not future.done():
                future.set_exception(error)
                future.exception()  # one of the two is never awaited
        if self._ending is None:
            _log.warning("Ray was lost: %s", words)

    def _keep_log(self, replica: int, text: bytes) -> None:
        with contextlib.suppress(OSError), (self._folder / f"{replica}.log").open("ab") as file:
            file.write(text)
        lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
        self._tails[replica].extend(line[-300:] for line in lines if line)

    def _named(self, replica: int) -> str:
        node = self._nodes[replica] if self._nodes else "a node not yet known"
        return f"replica {replica} on {node}"

    async def _hang_up(self) -> None:
        """Ask the replicas to end, and wait until they have hung up."""
        if self._router is not None:
            self._take_nothing_more()
            self._end_all("stopped")
        if self._links is None:
            return
        self._links.send_all(wire.Stop())
        deadline = time.monotonic() + _STOP_S
        while self._links.connected() and not self._missing and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def _take_nothing_more(self) -> None:
        while self._inbox:
            queries, sink = self._inbox.popleft()
            sink.complete([Completion(query.row, error="stopped") for query in queries])

    async def _close(self) -> None:
        if self._links is not None:
            await self._links.close()


def _work(sample: Any, model: Any) -> int:
    """A query's work, in tokens where it is known: prompt and longest answer."""
    tokens = getattr(sample, "tokens", None)
    return 1 if tokens is None else len(tokens) + int(getattr(model, "max_new_tokens", 0))


def _capacity(plan: Plan) -> int | None:
    """How many queries keep a replica busy; the rest waits here, for whichever is free first."""
    backend = plan.config.backend
    most: float | None = None
    if isinstance(backend, VllmBackend):
        most = _SPARE * int(plan.engine["max_num_seqs"])
    elif isinstance(backend, SimulatedBackend):
        most = None if backend.concurrency is None else _SPARE * backend.concurrency
    elif isinstance(backend, TorchBackend):
        most = 2.0 * int(plan.engine["sizes"][-1]) * int(plan.engine["in_flight"])
    return None if most is None else max(2, int(most) + 1)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # comes with vLLM
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
