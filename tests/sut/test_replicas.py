"""A fleet over replicas in processes of their own (without Ray): every query ends once, whatever becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.messages import Answers, Completion, Queries, Sample
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.replicas import wire
from mlperf_exp.sut.replicas.fleet import Fleet
from tests.sut.local_placer import LocalPlacer

pytestmark = pytest.mark.skipif(
    os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="starts and kills many processes: make test-replicas"
)

SAMPLES = [Sample(tuple(range(1, 2 + i % 7)), "") for i in range(64)]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


class Recorder:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.first: dict[int, int] = defaultdict(int)
        self.ends: dict[int, list[Completion]] = defaultdict(list)
        self.failures: list[str] = []

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        assert len(tokens) == len(rows)
        with self._changed:
            for row in rows:
                self.first[row] += 1
            self._changed.notify_all()

    def complete(self, completions: Sequence[Completion]) -> None:
        with self._changed:
            for completion in completions:
                self.ends[completion.row].append(completion)
            self._changed.notify_all()

    def complete_many(self, answers: Answers) -> None:
        rows = answers.rows.tolist()
        self.complete([Completion(row, answers.data[a:b].view("int32").tolist()) for row, a, b in zip(
            rows, answers.offsets[:-1], answers.offsets[1:], strict=True)])  # fmt: skip

    def failed(self, reason: str) -> None:
        with self._changed:
            self.failures.append(reason)
            self._changed.notify_all()

    def wait(self, ready: Callable[[Recorder], bool], timeout: float = 120) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: ready(self), timeout), (len(self.ends), self.failures)

    def errors(self) -> dict[int, str]:
        return {row: ends[0].error for row, ends in self.ends.items() if ends[0].error is not None}

    def all_once(self, count: int) -> None:
        assert sorted(self.ends) == list(range(count))
        assert all(len(ends) == 1 for ends in self.ends.values())
        assert all(times == 1 for times in self.first.values())


PATIENT = "ray.heartbeat_timeout_s=120"  # a busy machine may keep a process from its turn for seconds


def fleet(folder: Path, replicas: int, *words: str) -> tuple[Fleet, LocalPlacer]:
    plan = make_plan(
        compose(
            "config",
            [
                "model=llama3_tiny",
                "backend=simulated",
                f"backend.replicas={replicas}",
                "ray.heartbeat_timeout_s=120",
                *words,
            ],
        ),
        folder,
    )
    made: list[LocalPlacer] = []

    def placer(on_event: Any) -> LocalPlacer:
        made.append(LocalPlacer(on_event))
        return made[0]

    return Fleet(plan, None, placer), made[0]


@contextlib.contextmanager
def running(folder: Path, replicas: int, *words: str) -> Iterator[tuple[Fleet, LocalPlacer, Recorder]]:
    system, placer = fleet(folder, replicas, *words)
    try:
        system.start(SAMPLES)
        yield system, placer, Recorder()
    finally:
        system.stop()
    assert not any(process.is_alive() for process in placer.processes)


def queries(count: int, first: int = 0) -> Queries:
    return Queries(first, [(first + i) % len(SAMPLES) for i in range(count)])


SERVER = ("scenario=server", "scenario.target_qps=10")
QUICK = ("backend.ttft_ms=1", "backend.tpot_ms=0.1", "backend.output_tokens=16")
SLOW = ("backend.ttft_ms=20000", "backend.tpot_ms=0.1", "backend.output_tokens=4", "backend.sigma=0")
HALF = ("backend.ttft_ms=1", "backend.tpot_ms=5000", "backend.output_tokens=5", "backend.sigma=0")


def test_every_query_is_answered_once_and_the_figures_say_by_whom(tmp_path: Path) -> None:
    with running(tmp_path, 3, *QUICK, *SERVER) as (system, _, sink):
        for part in range(20):
            system.submit(queries(30, 30 * part), sink)
            time.sleep(0.01)
        sink.wait(lambda it: len(it.ends) == 600)
        figures, warnings = system.report()
        other = Recorder()
        system.submit(queries(10), other)  # a second test
        other.wait(lambda it: len(it.ends) == 10)
        system.reset(SAMPLES[:5])
        again = Recorder()
        system.submit(queries(5), again)
        again.wait(lambda it: len(it.ends) == 5)
        assert sum(system.report()[0][f"replica_share_{end}"] for end in ("min", "max")) > 0
    sink.all_once(600)
    assert len(sink.first) == 600
    assert all(list(ends[0].tokens) == list(range(1, 17)) for ends in sink.ends.values())
    assert not sink.errors() and not sink.failures and not warnings
    assert (figures["replicas"], figures["replicas_lost"], figures["retried"]) == (3, 0, 0)
    assert 0 <= figures["router_overhead_p50_ms"] <= figures["router_overhead_p99_ms"]
    assert figures["replica_share_min"] > 0.6
    kept = json.loads((tmp_path / "replicas" / "replicas.json").read_text())
    assert sum(row["queries"] for row in kept["replicas"]) == 5


def test_an_offline_load_waits_in_the_router_and_all_end_together(tmp_path: Path) -> None:
    words = (
        "scenario=offline",
        "backend.concurrency=4",
        "backend.ttft_ms=20",
        "backend.tpot_ms=1",
        "backend.sigma=0.5",
    )
    with running(tmp_path, 2, *words) as (system, _, sink):
        system.submit(queries(200), sink)
        sink.wait(lambda it: len(it.ends) == 200)
        figures, _ = system.report()
    sink.all_once(200)
    assert figures["router_wait_p99_ms"] > 500  # most of them were not given to a replica at once
    assert figures["tail_s"] < 2


@pytest.mark.parametrize(
    ("words", "retried"),
    [
        (("scenario=offline", *HALF), True),  # offline may ask again whatever was said
        ((*SERVER, *SLOW), True),  # no first token was told
        ((*SERVER, *HALF), False),
    ],
)
def test_a_killed_replica_s_queries_go_to_another_where_that_is_allowed(
    tmp_path: Path, words: tuple[str, ...], retried: bool
) -> None:
    with running(tmp_path, 2, *words) as (system, placer, sink):
        system.submit(queries(20), sink)
        if "backend.ttft_ms=1" in words:
            sink.wait(lambda it: len(it.first) == 20)
        placer.processes[0].kill()
        if not retried:
            sink.wait(lambda it: len(it.ends) >= 10)
        sink.wait(lambda it: len(it.ends) == 20)
        figures, warnings = system.report()
        with pytest.raises(RunFailed, match=r"replica 0 on \S+ was lost"):
            system.reset(SAMPLES)
    sink.all_once(20)
    assert figures["replicas_lost"] == 1
    assert figures["retried"] == (10 if retried else 0)
    assert len(sink.errors()) == (0 if retried else 10)
    assert all("was lost: its " in error for error in sink.errors().values())  # connection, or process
    assert "replica 0 on" in warnings[0]
    assert not sink.failures


def test_a_replica_that_falls_silent_is_lost_in_time(tmp_path: Path) -> None:
    """A frozen process is like a cut cable: the connection stays, and nothing comes."""
    with running(tmp_path, 2, "scenario=offline", *HALF, "ray.heartbeat_timeout_s=8") as (system, placer, sink):
        system.submit(queries(8), sink)
        sink.wait(lambda it: len(it.first) == 8)
        os.kill(placer.processes[1].pid or 0, signal.SIGSTOP)
        sink.wait(lambda it: len(it.ends) == 8)
        _, (warning,) = system.report()
        os.kill(placer.processes[1].pid or 0, signal.SIGCONT)
    sink.all_once(8)
    assert "replica 1 on" in warning and "nothing came from it for 8 s (ray.heartbeat_timeout_s)" in warning
    assert not sink.errors()


def test_without_a_replica_left_all_ends_and_what_comes_then_too(tmp_path: Path) -> None:
    with running(tmp_path, 2, "scenario=offline", *SLOW) as (system, placer, sink):
        system.submit(queries(10), sink)
        for process in placer.processes:
            process.kill()
        sink.wait(lambda it: len(it.ends) == 10 and bool(it.failures))
        system.submit(queries(5, 10), sink)
        sink.wait(lambda it: len(it.ends) == 15)
    sink.all_once(15)
    assert len(sink.errors()) == 15
    assert len(sink.failures) == 1
    assert sink.failures[0].startswith("no replica is left: replica ")


def test_an_engine_that_is_lost_is_a_lost_replica(tmp_path: Path) -> None:
    with running(tmp_path, 2, "scenario=offline", *QUICK, "backend.fail_after=30") as (system, _, sink):
        system.submit(queries(60), sink)
        sink.wait(lambda it: bool(it.failures) and len(it.ends) == 60)
    sink.all_once(60)  # the query that kills its replica kills another one, and is not tried a third time
    assert "told to fail" in sink.failures[0]


def test_stopping_ends_what_is_outstanding(tmp_path: Path) -> None:
    with running(tmp_path, 2, *SERVER, *SLOW) as (system, _, sink):
        system.submit(queries(10), sink)
        time.sleep(0.2)
        system.stop()
        sink.wait(lambda it: len(it.ends) == 10)
        system.submit(queries(1, 10), sink)
        system.stop()
    sink.all_once(11)
    assert set(sink.errors().values()) == {"stopped"}


def test_replicas_end_when_their_fleet_is_gone(tmp_path: Path) -> None:
    with running(tmp_path, 2, *SERVER, *SLOW) as (system, placer, _):
        links = system._links
        assert links is not None and system._loop is not None
        system._loop.call_soon_threadsafe(lambda: [link.close() for link in links._links.values()])
        for process in placer.processes:
            process.join(60)
            assert not process.is_alive()


def test_a_start_that_fails_names_the_node_and_the_end_of_the_log(tmp_path: Path) -> None:
    class Broken(LocalPlacer):
        broken = True

    plan = make_plan(compose("config", ["model=llama3_tiny", "backend=simulated", "backend.replicas=2"]), tmp_path)
    made: list[Broken] = []

    def placer(on_event: Any) -> Broken:
        made.append(Broken(on_event))
        return made[0]

    system = Fleet(plan, None, placer)
    with pytest.raises(RunFailed) as caught:
        system.start(SAMPLES)
    assert "on " in str(caught.value) and "did not start: " in str(caught.value)
    assert "its log ends: loading | CUDA error: the device is broken" in str(caught.value)
    system.stop()
    assert not any(process.is_alive() for process in made[0].processes)


def test_a_users_mistake_stays_one(tmp_path: Path) -> None:
    plan = make_plan(compose("config", ["model=llama3_tiny", "backend=simulated", "backend.replicas=2"]), tmp_path)

    class Refusing(LocalPlacer):
        def start(self, *_: Any) -> None:
            self._on_event({"event": "refused", "error": "x", "user": ["backend.replicas", "too many", "Give 1"]})

    system = Fleet(plan, None, Refusing)
    with pytest.raises(UserError, match=r"backend\.replicas: too many\. Give 1"):
        system.start(SAMPLES)


def test_strangers_are_hung_up_on(tmp_path: Path) -> None:
    with running(tmp_path, 2, *SERVER, *QUICK) as (system, _, sink):
        assert system._links is not None and system._links._server is not None
        address = system._links._server.sockets[0].getsockname()
        assert address[0] == "127.0.0.1"
        guess = wire.frame(wire.Hello(0, "0" * 64, "me", 1))
        for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(guess), bytes(wire.frame(wire.Lost("ha"))), b"\1\0\0\0\xc1"):
            with socket.create_connection(address, timeout=20) as stranger:
                stranger.sendall(data)
                with contextlib.suppress(ConnectionError):
                    assert stranger.recv(100) == b""
        system.submit(queries(10), sink)
        sink.wait(lambda it: len(it.ends) == 10)
    sink.all_once(10)
    assert not sink.errors()
