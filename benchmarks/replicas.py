"""What the router, Ray and the connections add, and what one LoadGen process can feed; simulated replicas.

    python benchmarks/replicas.py [--parts overhead many feed] [--qps 3000] [--actors 4] [--seconds 20]

``overhead``: the whole command over replicas that are Ray actors, at ``--qps`` in token mode; each query takes exactly
20 ms and 147 ms, so that what LoadGen counts above that was added. Bar: 3,000 qps over 4 actors, p99 below 20 ms.

``many``: one rate over 4, 40, 400 and 1,000 replicas, which share one process here (their connections do not): the
processor time of the fleet's thread for each query. Bar: it does not grow with the number of replicas.

``router``: the router alone, without connections, over as many replicas at 100,000 qps of simulated time.

``feed``: rising rates over 1,000 replicas until the fleet's thread has no time left.

Prints JSON.
"""

# ruff: noqa: ARG002, D102 - placers, sinks and protocols of others
from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import LATENCY_MS, TOKENS, TTFT_MS, added, run
from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.messages import Completion, Queries, Query, Sample
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.replicas import wire
from mlperf_exp.sut.replicas.fleet import Fleet
from mlperf_exp.sut.routing.router import Router

SIZES = (4, 40, 400, 1000)


def overhead(qps: float, seconds: float, actors: int) -> dict[str, Any]:
    """One run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder) / "run", qps, seconds, f"backend.replicas={actors}", "tracking.enabled=false")
    metrics = result["metrics"]
    return {
        **added(result),
        "start_s": result["phases"]["start_s"],
        **{name: metrics[name] for name in ("router_overhead_p50_ms", "router_overhead_p99_ms", "issue_delay_p99_ms",
                                            "client_cpu_cores", "client_thread_cores")},
    }  # fmt: skip


class Swarm:
    """A placer whose replicas share one process; each has its own connection, and answers after fixed times."""

    def __init__(self, on_event: Any) -> None:
        self._on_event = on_event
        self._process: Any = None

    def start(self, layout: Any, address: Any, timeout_s: float, log: Path) -> None:
        self._on_event({"event": "placed", "nodes": ["here"], "addresses": ["here"], "own": "here"})

    def ask(self, request: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=swarm, args=(request.listens, request.tokens), daemon=True)
        self._process.start()
        for replica in range(len(request.tokens)):
            self._on_event({"event": "started", "replica": replica, "phases": {}})

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()


def swarm(listens: tuple[str, int], tokens: Sequence[str]) -> None:
    """The other side of so many connections."""
    import uvloop

    uvloop.run(_swarm(listens, tokens))


async def _swarm(listens: tuple[str, int], tokens: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    answer = bytes(4 * TOKENS)
    ended = loop.create_future()

    class Peer(asyncio.Protocol):
        def __init__(self, number: int) -> None:
            self.number, self.frames = number, wire.Frames()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            transport.write(bytes(wire.frame(wire.Hello(self.number, tokens[self.number], "here", os.getpid()))))

        def data_received(self, data: bytes) -> None:
            for each in self.frames.feed(data):
                message = wire.to_replica.decode(each)
                if isinstance(message, wire.Work):
                    loop.call_later(TTFT_MS / 1e3, self.first, message.tickets)
                    loop.call_later(LATENCY_MS / 1e3, self.done, message.tickets, loop.time())
                elif isinstance(message, wire.Beat):
                    self.transport.write(bytes(wire.frame(message)))

        def first(self, tickets: list[int]) -> None:
            self.transport.write(bytes(wire.frame(wire.Answers(tickets, [1] * len(tickets), []))))

        def done(self, tickets: list[int], came: float) -> None:
            held = int((loop.time() - came) * 1e6)
            ends = [wire.Done(ticket, answer, None, None, held) for ticket in tickets]
            self.transport.write(bytes(wire.frame(wire.Answers([], [], ends))))

        def connection_lost(self, exc: Exception | None) -> None:
            if not ended.done():
                ended.set_result(None)

    for number in range(len(tokens)):
        await loop.create_connection(lambda n=number: Peer(n), *listens)
    await ended


class Counter:
    """A sink that counts, and keeps how late each answer was against the fixed times."""

    def __init__(self) -> None:
        self.ended, self.errors = 0, 0
        self.changed = threading.Condition()

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        pass

    def complete(self, completions: Sequence[Completion]) -> None:
        with self.changed:
            self.ended += len(completions)
            self.errors += sum(completion.error is not None for completion in completions)
            self.changed.notify_all()

    def complete_many(self, answers: Any) -> None:
        raise NotImplementedError

    def failed(self, reason: str) -> None:
        raise SystemExit(reason)


def fed(replicas: int, qps: float, seconds: float) -> dict[str, Any]:
    """One rate over so many replicas of a swarm, in bursts a millisecond apart."""
    samples = [Sample(tuple(range(700)), "")] * 1024
    with tempfile.TemporaryDirectory() as folder:
        words = ["model=llama3_tiny", "backend=simulated", f"backend.replicas={replicas}", "scenario=server",
                 "ray.heartbeat_timeout_s=60"]  # fmt: skip
        fleet = Fleet(make_plan(compose("config", words), Path(folder)), None, Swarm)
        fleet.start(samples)
        try:
            assert fleet._links is not None
            while len(fleet._links.connected()) < replicas:
                time.sleep(0.05)
            spent = _loop_seconds(fleet)
            sink, sent = Counter(), 0
            began = time.perf_counter()
            while (elapsed := time.perf_counter() - began) < seconds:
                due = int(elapsed * qps)
                if due > sent:
                    fleet.submit(Queries(sent, [i % 1024 for i in range(sent, due)]), sink)
                    sent = due
                time.sleep(0.001)
            with sink.changed:
                sink.changed.wait_for(lambda: sink.ended >= sent, 60)
            wall = time.perf_counter() - began - LATENCY_MS / 1e3
            spent = _loop_seconds(fleet) - spent
            figures, _ = fleet.report()
        finally:
            fleet.stop()
    return {
        "replicas": replicas, "qps": qps, "queries": sent, "errors": sink.errors,
        "completed_per_second": sink.ended / wall, "fleet_cores": spent / wall, "fleet_us_a_query": spent / sent * 1e6,
        "router_overhead_p50_ms": figures["router_overhead_p50_ms"],
        "router_overhead_p99_ms": figures["router_overhead_p99_ms"],
    }  # fmt: skip


def _loop_seconds(fleet: Fleet) -> float:
    """Processor seconds of the fleet's thread."""
    found: list[float] = []
    asked = threading.Event()

    def look() -> None:
        found.append(time.thread_time())
        asked.set()

    assert fleet._loop is not None
    fleet._loop.call_soon_threadsafe(look)
    asked.wait()
    return found[0]


def router(replicas: int, qps: float, queries: int) -> dict[str, Any]:
    """The router alone in simulated time: seconds of processor for each query."""
    made, sink = Router(replicas), Counter()
    ends: list[tuple[float, int, int]] = []
    began = time.process_time()
    for row in range(queries):
        now = row / qps
        while ends and ends[0][0] <= now:
            at, server, ticket = heapq.heappop(ends)
            made.done(server, ticket, at)
        made.take((Query(row, 0),), (700 + row % 97,), sink, now)
        for flight in made.deal(now):
            heapq.heappush(ends, (now + LATENCY_MS / 1e3, flight.server, flight.ticket))
    spent = time.process_time() - began
    return {"replicas": replicas, "qps": qps, "queries": queries, "us_a_query": spent / queries * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--parts", nargs="+", default=["router", "many", "feed", "overhead"])
    parser.add_argument("--qps", type=float, default=3000)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[10_000, 20_000, 40_000, 60_000, 100_000])
    options = parser.parse_args()
    cli.register()
    report: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()}
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        if "router" in options.parts:
            report["router"] = [router(count, 100_000, 100_000) for count in SIZES]
        if "many" in options.parts:
            report["many"] = [fed(count, options.qps, options.seconds / 4) for count in SIZES]
        if "feed" in options.parts:
            report["feed"] = [fed(1000, rate, options.seconds / 4) for rate in options.rates]
        if "overhead" in options.parts:
            runs = [overhead(options.qps, options.seconds, options.actors) for _ in range(options.repeats)]
            report["overhead"] = runs
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
