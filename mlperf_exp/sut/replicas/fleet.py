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
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mlperf_exp.client import Lag
from mlperf_exp.errors import RunFailed
from mlperf_exp.layout import layout
from mlperf_exp.messages import Completion, Plan, Query
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.replicas import delivery, room, wire
from mlperf_exp.sut.replicas.links import Links
from mlperf_exp.sut.replicas.muster import Muster
from mlperf_exp.sut.replicas.placer import Launch, OnEvent, Placer, Places, Renew
from mlperf_exp.sut.replicas.roster import Roster
from mlperf_exp.sut.routing import rules
from mlperf_exp.sut.routing.router import Router

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_START_S = 1800.0  # for backends without a limit of their own
_STOP_S = 20.0
_LOAD_S = 600.0


class Fleet:
    """See the module; the plan's ``backend.replicas`` copies of its engine, put in their places by ``placer``."""

    def __init__(self, plan: Plan, model: Path | None, placer: Callable[[OnEvent], Places] = Placer) -> None:
        self._plan, self._count = plan, int(plan.config.backend.replicas)
        self._model = model.absolute() if model is not None else None
        self._layout = layout(plan)
        self._roster = Roster(plan.run_dir / "replicas", self._count)
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
        self._delivery: delivery.Delivery | None = None
        self._muster: Muster | None = None
        self._works: list[int] = []
        self._told: list[Sink] = []  # that no replica is left
        self._loading: dict[int, asyncio.Future[str | None]] = {}
        self._hanging_up = False

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        """Place the replicas, start their engines and warm them up; the phases are those of the slowest.

        Raises:
            UserError, RunFailed: one did not start; the node and the end of its log are named.
        """
        began = time.perf_counter()
        self._roster.open()
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
        phases = self._muster.phases.values() if self._muster else ()
        warmup_s = max((each.get("warmup_s", 0.0) for each in phases), default=0.0)
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
        if self._roster.losses:
            raise RunFailed(f"it can serve no more: {self._roster.losses[0]}")
        self._call(self._renew(samples), getattr(self._plan.config.backend, "start_timeout_s", _START_S))

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        """See :class:`mlperf_exp.sut.base.Reports`; also keeps ``replicas/replicas.json``."""
        router = self._router
        if router is None:
            return {}, ()
        alive = [replica for replica in range(self._count) if not router.is_out(replica)]
        tally = router.tally()
        self._roster.write(router)
        figures = {"replicas": float(self._count), "replicas_lost": float(self._count - len(alive))}
        warnings = [*self._roster.warnings, *(f"{loss}." for loss in self._roster.losses[:3])]
        if self._muster is not None and self._muster.lost is not None:
            warnings.append(f"Ray was lost on the way: {self._muster.lost}.")
        return figures | (tally.metrics(alive) if tally else {}), tuple(warnings)

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
            missing = sorted(self._muster.missing) if self._muster else []
            waits = ", ".join(map(self._roster.named, missing[:4])) or "Ray"
            raise RunFailed(f"within {timeout_s:g} s no word came from {waits} (backend.start_timeout_s)") from None
        finally:
            future.cancel()

    # What follows runs on the loop's thread.

    async def _open(self, samples: Sequence[Any]) -> None:
        config, log = self._plan.config, self._plan.run_dir / "ray.log"
        self._muster = Muster(self._count, self._roster, log)
        self._works = [room.work(sample, config.model) for sample in samples]
        self._router = Router(
            self._count,
            config.backend.replica_queries or room.capacity(self._plan),
            routing=config.backend.routing,
            retry=rules.retry(config.scenario.name),
            longest_first=rules.longest_first(self._plan, len(samples)),
        )
        self._delivery = delivery.Delivery(self._router)
        tokens = tuple(secrets.token_hex(32) for _ in range(self._count))
        self._links = Links(
            tokens,
            config.ray.heartbeat_timeout_s,
            on_hello=self._hello,
            on_message=self._message,
            on_gone=self._gone,
        )
        self._placer.start(self._layout, config.ray.address, config.ray.timeout_s, log)
        placed = await self._muster.placed()
        self._roster.nodes = [placed["nodes"][self._layout.node_of(replica)] for replica in range(self._count)]
        here = all(address == placed["own"] for address in placed["addresses"])
        host = "127.0.0.1" if here else placed["own"]
        port = await self._links.listen(host)
        one = replace(self._plan, config=replace(config, backend=replace(config.backend, replicas=1)))
        self._placer.ask(Launch(one, self._model, samples, (host, port), tokens))
        await self._muster.all()
        self._links.watch()

    async def _renew(self, samples: Sequence[Any]) -> None:
        assert self._router is not None
        assert self._muster is not None
        self._muster.again()
        self._works = [room.work(sample, self._plan.config.model) for sample in samples]
        self._placer.ask(Renew(samples))
        await self._muster.all()
        self._router.forget()

    async def _load(self, samples: list[int], wanted: bool) -> None:
        assert self._links is not None
        loop = asyncio.get_running_loop()
        self._loading = {replica: loop.create_future() for replica in self._links.connected()}
        self._links.send_all(wire.Load(samples, wanted))
        for replica, future in list(self._loading.items()):
            if error := await future:
                raise RunFailed(f"{self._roster.named(replica)}: {error}")

    def _take(self) -> None:
        self._woken = False  # before looking: what comes from now on wakes the loop again
        router = self._router
        assert router is not None
        assert self._loop is not None
        now = time.monotonic()
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
            self._tell(delivery.end(self._router.end_all(), self._roster.none_left()))
            return
        frames: dict[int, tuple[list[int], list[int]]] = {}
        for flight in self._router.deal(time.monotonic()):
            tickets, samples = frames.setdefault(flight.server, ([], []))
            tickets.append(flight.ticket)
            samples.append(flight.sample)
        for server, (tickets, samples) in frames.items():
            self._links.send(server, wire.Work(tickets, samples))

    def _hello(self, hello: wire.Hello) -> None:
        self._roster.nodes[hello.replica] = hello.node

    def _message(self, replica: int, message: wire.FromReplica) -> None:
        assert self._delivery is not None
        assert self._router is not None
        if isinstance(message, wire.Answers | wire.Many):
            now = time.monotonic()
            if isinstance(message, wire.Answers):
                self._delivery.answers(replica, message, now)
            else:
                self._delivery.many(replica, message, now)
            if self._router.waiting:
                self._deal()
        elif isinstance(message, wire.Log):
            self._roster.keep_log(replica, message.text)
        elif isinstance(message, wire.Warned):
            if message.text not in self._roster.warnings:  # all replicas are alike
                self._roster.warnings.append(message.text)
        elif isinstance(message, wire.Lost) and self._links is not None:
            self._links.gone(replica, message.reason)
        elif isinstance(message, wire.Loaded) and replica in self._loading and not self._loading[replica].done():
            self._loading[replica].set_result(message.error)

    def _gone(self, replica: int, why: str) -> None:
        """A replica is lost: its queries go to others where that is allowed, else they end with an error."""
        assert self._router is not None
        assert self._muster is not None
        if (future := self._loading.get(replica)) is not None and not future.done():
            future.set_result(why)
        if self._hanging_up:
            return  # it was told to
        if self._muster.waits:
            self._muster.not_started(replica, why)
            return
        reason = self._roster.lost(replica, why)
        _log.warning("%s", reason)
        ended = delivery.end(self._router.lose(replica), reason)
        if not self._router.alive:
            self._tell(ended + delivery.end(self._router.end_all(), self._roster.none_left()))
        elif self._router.waiting:
            self._deal()

    def _tell(self, sinks: Sequence[Sink]) -> None:
        """No replica is left; each sink is told once."""
        for sink in sinks:
            if not any(sink is told for told in self._told):
                self._told.append(sink)
                sink.failed(self._roster.none_left())

    def _event(self, event: dict[str, Any]) -> None:
        """A word of the placer, on its thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._on_event, event)

    def _on_event(self, event: dict[str, Any]) -> None:
        assert self._muster is not None
        if event["event"] == "died" and self._links is not None and event["replica"] in self._links.connected():
            self._links.gone(event["replica"], event["error"])
            return
        known = self._muster.lost
        self._muster.take(event)
        if self._muster.lost is not known and self._ending is None:
            _log.warning("Ray was lost: %s", self._muster.lost)

    async def _hang_up(self) -> None:
        """Ask the replicas to end, and wait until they have hung up."""
        self._hanging_up = True
        while self._inbox:
            queries, sink = self._inbox.popleft()
            sink.complete([Completion(query.row, error="stopped") for query in queries])
        if self._router is not None:
            delivery.end(self._router.end_all(), "stopped")
        if self._links is None or self._muster is None:
            return
        self._links.send_all(wire.Stop())
        deadline = time.monotonic() + _STOP_S
        while self._links.connected() and not self._muster.missing and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _close(self) -> None:
        if self._links is not None:
            await self._links.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # comes with vLLM
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
