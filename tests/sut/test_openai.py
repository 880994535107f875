"""The openai backend against real servers on 127.0.0.1, good ones and bad ones."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mlperf_exp.config import OpenaiBackend
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.messages import Completion, Query, Sample
from mlperf_exp.sut.http.dispatcher import LOST_AFTER
from mlperf_exp.sut.openai import OpenAI
from tests.sut.openai_server import OUTPUT, Kind, Server, expected

KEY = "sk-secret-0123456789"


class Recorder:
    """A sink that keeps all that it is told, with the time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.first: dict[int, list[float]] = defaultdict(list)
        self.ends: dict[int, list[tuple[float, Completion]]] = defaultdict(list)
        self.failures: list[str] = []

    def first_token(self, rows: Sequence[int]) -> None:
        now = time.monotonic()
        with self._changed:
            for row in rows:
                self.first[row].append(now)
            self._changed.notify_all()

    def complete(self, completions: Sequence[Completion]) -> None:
        now = time.monotonic()
        with self._changed:
            for completion in completions:
                self.ends[completion.row].append((now, completion))
            self._changed.notify_all()

    def failed(self, reason: str) -> None:
        with self._changed:
            self.failures.append(reason)
            self._changed.notify_all()

    def wait(self, ends: int = 0, *, firsts: int = 0, failures: int = 0, timeout: float = 20) -> None:
        def reached() -> bool:
            return len(self.ends) >= ends and len(self.first) >= firsts and len(self.failures) >= failures

        with self._changed:
            assert self._changed.wait_for(reached, timeout), (len(self.ends), len(self.first), self.failures)

    def one(self, row: int) -> Completion:
        ((_, completion),) = self.ends[row]
        return completion

    def error(self, row: int) -> str:
        completion = self.one(row)
        assert completion.error is not None, completion
        assert "\n" not in completion.error
        assert len(completion.error) <= 300
        assert not completion.tokens
        return completion.error


def config(*servers: Server | str, **more: Any) -> OpenaiBackend:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    values: dict[str, Any] = {"connect_timeout_s": 2.0, "idle_timeout_s": 5.0, "request_timeout_s": 20.0, **more}
    return OpenaiBackend(urls=urls, **values)


def sample(kind: Kind, *rest: int) -> Sample:
    return Sample((int(kind), *rest), "")


GOOD = sample(Kind.GOOD, 5)


@contextlib.contextmanager
def running(system: OpenAI, *samples: Sample) -> Iterator[tuple[OpenAI, Recorder]]:
    """The system, started with one good sample (index 0, which warms up) and then ``samples``."""
    try:
        system.start([GOOD, *samples])
        yield system, Recorder()
    finally:
        system.stop()


def openai(backend: OpenaiBackend, **more: Any) -> OpenAI:
    return OpenAI(backend, model="tiny", max_tokens=16, **more)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        yield it


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Good answers


def test_every_query_completes_once_with_the_servers_ids_and_count(server: Server) -> None:
    samples = [sample(Kind.GOOD, i) for i in range(50)]
    with running(openai(config(server)), *samples) as (system, sink):
        system.submit([Query(row, 1 + row % 50) for row in range(200)], sink)
        sink.wait(200)
    for row in range(200):
        completion = sink.one(row)
        assert list(completion.tokens) == expected(samples[row % 50].tokens)
        assert completion.error is None
        assert completion.generated == OUTPUT
        (first,) = sink.first[row]
        assert first <= sink.ends[row][0][0]
    assert sink.failures == []


def test_the_request_is_greedy_streamed_and_made_of_token_ids(server: Server) -> None:
    with running(OpenAI(config(server), model="tiny", max_tokens=16, min_tokens=2)) as (system, sink):
        system.submit([Query(0, 0)], sink)
        sink.wait(1)
    assert server.bodies[-1] == {
        "prompt": list(GOOD.tokens),
        "model": "tiny",
        "max_tokens": 16,
        "min_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    assert server.bodies[0]["max_tokens"] == 8  # the warm-up


def test_connections_are_used_again(server: Server) -> None:
    with running(openai(config(server))) as (system, sink):
        for row in range(20):
            system.submit([Query(row, 0)], sink)
            sink.wait(row + 1)
            time.sleep(0.005)
    assert len(server.bodies) == 21
    assert len(server.connections) == 1


def test_no_more_connections_than_allowed(server: Server) -> None:
    with running(openai(config(server, connections=3))) as (system, sink):
        server.hold = 0.02
        system.submit([Query(row, 0) for row in range(30)], sink)
        sink.wait(30)
    assert server.most == 3
    assert len(server.connections) == 3
    assert all(sink.one(row).error is None for row in range(30))


def test_the_first_token_is_not_the_first_chunk(server: Server) -> None:
    with running(openai(config(server)), sample(Kind.SLOW_START)) as (system, sink):
        sent = time.monotonic()
        system.submit([Query(0, 1)], sink)
        sink.wait(1)
    assert 0.3 <= sink.first[0][0] - sent < 2.0


def test_the_first_token_is_told_at_once(server: Server) -> None:
    with running(openai(config(server)), sample(Kind.HANG_MID)) as (system, sink):
        system.submit([Query(0, 1)], sink)
        sink.wait(firsts=1, timeout=2)
        assert not sink.ends


def test_a_token_without_text_counts_by_usage(server: Server) -> None:
    with running(openai(config(server), tokenize=lambda text: [7]), sample(Kind.SILENT_TOKEN)) as (system, sink):
        system.submit([Query(0, 1)], sink)
        sink.wait(1)
    assert sink.one(0).generated == 1
    assert len(sink.first[0]) == 1


def test_text_is_tokenized_where_there_are_no_ids_and_usage_still_counts(server: Server) -> None:
    server.strict = True

    def tokenize(text: str) -> list[int]:
        return [int(word) for word in text.split()][:-1]  # one less than the server counts

    with running(openai(config(server, send_min_tokens=False), tokenize=tokenize)) as (system, sink):
        system.submit([Query(0, 0)], sink)
        sink.wait(1)
    completion = sink.one(0)
    assert list(completion.tokens) == expected(GOOD.tokens)[:-1]
    assert completion.generated == OUTPUT
    assert set(server.bodies[-1]) == {"prompt", "model", "max_tokens", "temperature", "stream", "stream_options"}


def test_a_tokenizer_that_raises_is_an_error_of_that_query(server: Server) -> None:
    def tokenize(text: str) -> list[int]:
        if sink.first:
            raise RuntimeError("cannot")
        return [1]

    sink = Recorder()
    with running(openai(config(server), tokenize=tokenize), sample(Kind.TEXT_ONLY)) as (system, _):
        system.submit([Query(0, 1), Query(1, 0)], sink)
        sink.wait(2)
    assert "tokenizer refuses: cannot" in sink.error(0)
    assert sink.one(1).error is None


def test_a_base_url_may_end_in_v1_or_not(server: Server) -> None:
    for url in (server.url, server.url + "/", server.url + "/v1", server.url + "/v1/"):
        with running(openai(config(url))) as (system, sink):
            system.submit([Query(0, 0)], sink)
            sink.wait(1)
        assert sink.one(0).error is None


def test_two_servers_share_the_load() -> None:
    with Server() as one, Server() as two:
        one.hold, two.hold = 0.01, 0.04
        with running(openai(config(one, two, connections=64))) as (system, sink):
            for row in range(100):
                system.submit([Query(row, 0)], sink)
                time.sleep(0.004)
            sink.wait(100)
        counts = len(one.bodies), len(two.bodies)
    assert all(sink.one(row).error is None for row in range(100))
    assert counts[1] > 10
    assert counts[0] > 1.5 * counts[1]  # the faster one has less outstanding, and so gets more


def test_submit_does_not_wait(server: Server) -> None:
    server.hold = 0.5
    with running(openai(config(server))) as (system, sink):
        began = time.monotonic()
        system.submit([Query(row, 0) for row in range(2000)], sink)
        assert time.monotonic() - began < 0.1


def test_phases_are_told(server: Server) -> None:
    system = openai(config(server))
    try:
        phases = system.start([GOOD])
    finally:
        system.stop()
    assert set(phases) == {"start_s", "warmup_s"}
    assert all(0 < seconds < 5 for seconds in phases.values())


# Faults of single queries

FAULTS = {
    Kind.CLOSE_BEFORE: "closed the connection before it answered",
    Kind.CLOSE_MID: "closed the connection in the middle of its answer",
    Kind.HALF_EVENT: "ended its answer in the middle of an event before data: [DONE]",
    Kind.NO_DONE: "ended its answer before data: [DONE]",
    Kind.BROKEN_JSON: 'sent broken JSON: {"choices": [{"text":',
    Kind.NO_OBJECT: "sent an event that is no JSON object: [1, 2]",
    Kind.WRONG_TYPES: "token_ids that are no list of token ids",
    Kind.NOT_UTF8: "not UTF-8",
    Kind.NO_USAGE: "sent no usage",
    Kind.NO_TOKEN: "answered without a token",
    Kind.ERROR_EVENT: "reported an error: the engine died",
    Kind.ABORTED: "finish_reason abort",
    Kind.BROKEN_HTTP: "sent broken HTTP",
    Kind.NO_STREAM: "before data: [DONE] (content type application/json)",
    Kind.STATUS_400: "answered HTTP 400: This prompt is too long",
    Kind.STATUS_429: "answered HTTP 429 (Retry-After: 7): slow down",
    Kind.STATUS_500: "answered HTTP 500: <html>xxx",
    Kind.REDIRECT: "answered HTTP 307",
    Kind.TOO_MANY: "counts 100000 output tokens where at most 16",
    Kind.ENDLESS_TOKENS: "sent more than the 16 output tokens",
    Kind.ENDLESS_COMMENTS: "and did not end its answer",
    Kind.TEXT_ONLY: "without token ids, and there is no tokenizer",
}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.name)
def test_a_fault_is_one_clear_error_and_the_others_still_run(server: Server, kind: Kind) -> None:
    with running(openai(config(server)), sample(kind)) as (system, sink):
        system.submit([Query(row, row % 2) for row in range(12)], sink)
        sink.wait(12)
        system.submit([Query(12, 0)], sink)
        sink.wait(13)
    for row in range(13):
        if row % 2:
            assert FAULTS[kind] in sink.error(row)
            assert sink.error(row).startswith(server.url)
        else:
            assert list(sink.one(row).tokens) == expected(GOOD.tokens)
    assert sink.failures == []


def test_every_kind_of_misbehaviour_has_a_test() -> None:
    good = {Kind.GOOD, Kind.SLOW_START, Kind.SILENT_TOKEN, Kind.HANG_AFTER_DONE}
    assert set(FAULTS) | good | {Kind.HANG, Kind.HANG_MID, Kind.TRICKLE} == set(Kind)


def test_a_stream_that_stalls_ends_after_the_idle_time(server: Server) -> None:
    backend = config(server, idle_timeout_s=0.4)
    with running(openai(backend), sample(Kind.HANG_MID)) as (system, sink):
        sent = time.monotonic()
        system.submit([Query(0, 1), Query(1, 0)], sink)
        sink.wait(2)
        assert 0.4 <= time.monotonic() - sent < 2
    assert "sent nothing for 0.4 s (backend.idle_timeout_s)" in sink.error(0)
    assert sink.one(1).error is None


def test_a_server_that_never_answers_ends_after_the_idle_time(server: Server) -> None:
    with running(openai(config(server, idle_timeout_s=0.4)), sample(Kind.HANG)) as (system, sink):
        system.submit([Query(0, 1)], sink)
        sink.wait(1, timeout=3)
    assert "sent nothing for 0.4 s" in sink.error(0)
    assert sink.failures == []


def test_a_query_may_wait_in_a_busy_servers_queue_for_longer_than_the_idle_time(server: Server) -> None:
    with running(openai(config(server, idle_timeout_s=0.4)), sample(Kind.TRICKLE)) as (system, sink):
        server.hold = 1.2
        system.submit([Query(0, 0)], sink)
        time.sleep(0.2)
        server.hold = 0
        system.submit([Query(1, 1)], sink)  # keeps the server talking
        sink.wait(1, timeout=5)
    assert sink.one(0).error is None


def test_a_stream_that_goes_on_ends_after_the_request_time(server: Server) -> None:
    with running(openai(config(server, request_timeout_s=0.8)), sample(Kind.TRICKLE)) as (system, sink):
        system.submit([Query(0, 1), Query(1, 0)], sink)
        sink.wait(2, timeout=5)
    assert "did not finish the query within 0.8 s (backend.request_timeout_s)" in sink.error(0)
    assert sink.one(1).error is None


def test_a_connection_that_stays_open_after_the_answer_does_not_delay_it(server: Server) -> None:
    with running(openai(config(server, connections=1)), sample(Kind.HANG_AFTER_DONE)) as (system, sink):
        sent = time.monotonic()
        system.submit([Query(0, 1), Query(1, 0)], sink)
        sink.wait(1)
        assert time.monotonic() - sent < 0.5
        sink.wait(2, timeout=5)  # its connection is given up
    assert sink.one(0).error is None
    assert sink.one(1).error is None


def test_a_query_for_a_sample_that_does_not_exist_is_an_error(server: Server) -> None:
    with running(openai(config(server))) as (system, sink):
        system.submit([Query(0, 99), Query(1, 0)], sink)
        sink.wait(2)
    assert sink.error(0) == "there is no sample 99"
    assert sink.one(1).error is None


# Servers that are lost


def test_a_server_that_dies_ends_all_that_it_holds_and_then_the_run(server: Server) -> None:
    with running(openai(config(server)), sample(Kind.HANG_MID)) as (system, sink):
        system.submit([Query(row, 1) for row in range(40)], sink)
        sink.wait(firsts=40)
        server.kill()
        sink.wait(40)
        assert sink.failures == []  # it may be a server that resets connections
        system.submit([Query(row, 0) for row in range(40, 140)], sink)
        sink.wait(140, failures=1)
        system.submit([Query(140, 0)], sink)
        sink.wait(141)
        other = Recorder()
        system.submit([Query(0, 0)], other)
        other.wait(1, failures=1)
    assert all("in the middle of its answer" in sink.error(row) for row in range(40))
    assert all("refused the connection" in sink.error(row) for row in range(40, 141))
    assert sink.failures == [f"no server is left: {server.url}/v1 refused the connection"]
    assert len(other.failures) == 1


def test_one_of_two_servers_dies_and_the_other_takes_over() -> None:
    with Server() as one, Server() as two, running(openai(config(one, two, connections=4))) as (system, sink):
        one.kill()
        system.submit([Query(row, 0) for row in range(100)], sink)
        sink.wait(100)
        errors = [row for row in range(100) if sink.one(row).error]
        assert 1 <= len(errors) <= 4  # what had been given to it before the first was refused
        assert sink.failures == []


def test_a_hanging_server_is_lost_after_many_queries(server: Server) -> None:
    with running(openai(config(server, idle_timeout_s=0.3, connections=8))) as (system, sink):
        server.everything = Kind.HANG
        system.submit([Query(row, 0) for row in range(200)], sink)
        sink.wait(200, failures=1)
    assert len(sink.failures) == 1
    assert "sent nothing for 0.3 s" in sink.failures[0]
    assert all(sink.error(row) for row in range(200))
    assert len(server.bodies) < 1 + LOST_AFTER + 16


def test_closing_every_connection_loses_a_server(server: Server) -> None:
    with running(openai(config(server, connections=1))) as (system, sink):
        server.everything = Kind.CLOSE_BEFORE
        system.submit([Query(row, 0) for row in range(100)], sink)
        sink.wait(100, failures=1)
    assert len(server.bodies) == 1 + LOST_AFTER
    assert len(sink.failures) == 1


def test_the_only_server_keeps_its_queries_though_it_answers_with_errors(server: Server) -> None:
    with running(openai(config(server, connections=4))) as (system, sink):
        server.everything = Kind.STATUS_500
        system.submit([Query(row, 0) for row in range(60)], sink)
        sink.wait(60)
        server.everything = None
        system.submit([Query(60, 0)], sink)
        sink.wait(61)
    assert all("HTTP 500" in sink.error(row) for row in range(60))
    assert sink.one(60).error is None
    assert sink.failures == []


def test_a_server_that_fails_fast_does_not_swallow_the_load_of_a_good_one() -> None:
    with Server() as bad, Server() as good, running(openai(config(bad, good, connections=2))) as (system, sink):
        bad.everything, good.hold = Kind.STATUS_500, 0.01
        system.submit([Query(row, 0) for row in range(200)], sink)
        sink.wait(200)
        errors = [row for row in range(200) if sink.one(row).error]
    assert LOST_AFTER <= len(errors) <= LOST_AFTER + 2
    assert sink.failures == []


def test_all_of_it_without_uvloop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as where it is not installed
    system = openai(config(server))
    with running(system, sample(Kind.CLOSE_MID)) as (_, sink):
        assert "uvloop" not in repr(system._loop)
        system.submit([Query(0, 0), Query(1, 1)], sink)
        sink.wait(2)
        server.kill()
        system.submit([Query(2, 0)], sink)
        sink.wait(3, failures=1)
    assert list(sink.one(0).tokens) == expected(GOOD.tokens)
    assert "in the middle of its answer" in sink.error(1)
    assert "refused the connection" in sink.error(2)


# The end


def test_stop_completes_what_is_outstanding_once(server: Server) -> None:
    system = openai(config(server, connections=4))
    with running(system, sample(Kind.HANG), sample(Kind.HANG_MID)) as (_, sink):
        system.submit([Query(row, 1 + row % 2) for row in range(50)], sink)
        sink.wait(firsts=2)
        began = time.monotonic()
        system.stop()
        assert time.monotonic() - began < 3
        assert [sink.error(row) for row in range(50)] == ["stopped"] * 50
        system.submit([Query(50, 0)], sink)
        assert sink.error(50) == "stopped"
        system.stop()
    assert sink.failures == []
    assert "openai" not in [thread.name for thread in threading.enumerate()]


def test_stop_races_with_submit(server: Server) -> None:
    def submit_all(system: OpenAI, sink: Recorder, first: int) -> None:
        for row in range(first, first + 50):
            system.submit([Query(row, 0)], sink)

    for _ in range(10):
        with running(openai(config(server))) as (system, sink):
            threads = [threading.Thread(target=submit_all, args=(system, sink, 50 * k)) for k in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.005)
            system.stop()
            for thread in threads:
                thread.join()
            assert sorted(sink.ends) == list(range(200))
            assert all(len(ends) == 1 for ends in sink.ends.values())


def test_stop_before_start_and_submit_before_start() -> None:
    system, sink = openai(config("http://127.0.0.1:1")), Recorder()
    system.submit([Query(0, 0)], sink)
    assert sink.error(0) == "not started"
    system.stop()
    system.stop()


# The start


def start_error(backend: OpenaiBackend, **more: Any) -> str:
    system = openai(backend, **more)
    with pytest.raises((UserError, RunFailed)) as caught:
        system.start([GOOD])
    system.stop()
    assert "openai" not in [thread.name for thread in threading.enumerate()]
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(caught.value, UserError):
        assert message.startswith("backend.")
    return message


def test_a_server_that_refuses() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    message = start_error(config(url))
    assert message.startswith(f"backend.urls: {url}/v1/models refused the connection.")


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        message = start_error(config(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.3))
        assert time.monotonic() - began < 3
    assert "did not answer within 0.3 s (backend.connect_timeout_s)" in message


def test_a_server_that_does_not_accept() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # fill its queue: the kernel then drops what comes
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        message = start_error(config(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.3))
    assert "within 0.3 s (backend.connect_timeout_s)" in message


def test_a_host_that_does_not_exist() -> None:
    message = start_error(config("http://no-such-host.invalid:8000"))
    # The second where this machine's name server does not answer.
    assert "cannot be resolved" in message or "did not answer within 2 s" in message


def test_the_bad_one_of_two_servers_is_named(server: Server) -> None:
    bad = f"http://127.0.0.1:{free_port()}"
    message = start_error(config(server, bad))
    assert bad in message
    assert server.url not in message


def test_a_missing_key(server: Server) -> None:
    server.key = KEY
    message = start_error(config(server))
    assert "HTTP 401" in message
    assert "there is no key in $OPENAI_API_KEY" in message


def test_a_wrong_key_is_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "another"
    monkeypatch.setenv("MY_KEY", KEY)
    message = start_error(config(server, api_key_env="MY_KEY"))
    assert "the key in $MY_KEY was refused" in message
    assert "Incorrect API key provided: Bearer ***" in message
    assert "secret" not in message


def test_the_right_key_is_sent_and_appears_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    system = openai(config(server))
    with running(system) as (_, sink):
        system.submit([Query(0, 0)], sink)
        sink.wait(1)
        server.key = "changed"
        system.submit([Query(1, 0)], sink)
        sink.wait(2)
        shown = repr(system) + repr(vars(system)) + caplog.text + sink.error(1)
    assert sink.one(0).error is None
    assert "HTTP 401" in sink.error(1)
    assert "secret" not in shown


def test_a_key_that_is_no_header(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Evil: 1")
    message = start_error(config(server))
    assert message.startswith("backend.api_key_env: the key in $OPENAI_API_KEY")
    assert "secret" not in message


def test_an_unknown_model_lists_what_there_is(server: Server) -> None:
    message = start_error(config(server, served_model="large"))
    assert message.startswith(f"backend.served_model: {server.url}/v1 has no model large; it offers: tiny.")


def test_several_models_need_a_name(server: Server) -> None:
    server.models["data"] = [{"id": "a"}, {"id": "b"}]
    assert "has no model tiny; it offers: a, b" in start_error(config(server))
    with running(openai(config(server, served_model="b"))):
        assert server.bodies[-1]["model"] == "b"
    server.models["data"].append({"id": "tiny"})
    with running(openai(config(server))):
        assert server.bodies[-1]["model"] == "tiny"


def test_a_server_without_a_list_of_models(server: Server) -> None:
    server.models_status = 404
    assert start_error(config(server)).startswith("backend.served_model: is needed")
    with running(openai(config(server, served_model="any"))) as (system, sink):
        system.submit([Query(0, 0)], sink)
        sink.wait(1)
    assert sink.one(0).error is None
    server.health = 404
    assert "answers neither on /v1/models nor on /health" in start_error(config(server, served_model="any"))


@pytest.mark.parametrize("models", [[], {"data": []}, {"data": "x"}, {"data": [{"id": 3}]}], ids=json.dumps)
def test_a_list_of_models_that_is_none(server: Server, models: Any) -> None:
    server.models = models
    assert "lists no models" in start_error(config(server))


def test_a_context_that_is_too_short(server: Server) -> None:
    server.models["data"][0]["max_model_len"] = 17
    message = start_error(config(server))
    assert "with a context of 17 tokens; the longest prompt with its output needs 18" in message


def test_a_server_that_does_not_know_min_tokens_is_told_of_the_switch(server: Server) -> None:
    server.strict = True
    message = start_error(config(server))
    assert "Unrecognized request argument supplied: min_tokens" in message
    assert message.endswith("set backend.send_min_tokens=false")


def test_a_server_without_token_ids_needs_a_tokenizer(server: Server) -> None:
    server.everything = Kind.TEXT_ONLY
    assert "vLLM 0.10.2 or later" in start_error(config(server))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(Kind.STATUS_500, "HTTP 500"), (Kind.ERROR_EVENT, "the engine died"), (Kind.NO_USAGE, "sent no usage")],
)
def test_a_server_that_breaks_in_the_warm_up(server: Server, kind: Kind, problem: str) -> None:
    server.everything = kind
    message = start_error(config(server))
    assert message.startswith("the warm-up query failed: ")
    assert problem in message
    assert len(message) < 340


def test_a_warm_up_that_hangs(server: Server) -> None:
    server.everything = Kind.HANG
    assert "did not finish the warm-up query within 0.4 s" in start_error(config(server, idle_timeout_s=0.4))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "is no http or https URL"),
        ("127.0.0.1:8000", "is no http or https URL"),
        ("ftp://host", "is no http or https URL"),
        ("http://", "is no http or https URL"),
        ("http://host:99999", "entry 1 is no URL"),
        ("http://[::1", "entry 1 is no URL"),
        ("http://ho st", "is no http or https URL"),
        ("http://host/v1/completions", "is an endpoint"),
        ("http://host/v1?key=hunter2", "has a query"),
        ("http://me:hunter2@host:8000", "entry 1 (host:8000) carries a user name or password"),
        ("https://hunter2@host", "entry 1 (host) carries a user name or password"),
        ("ftp://me:hunter2@host", "carries a user name or password"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        openai(config(url))
    assert str(caught.value).startswith("backend.urls: ")
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_no_url_and_the_same_url_twice() -> None:
    with pytest.raises(UserError, match="names no server"):
        openai(config())
    with pytest.raises(UserError, match="comes twice"):
        openai(config("http://host:1", "http://host:1/v1/"))


def test_more_connections_than_open_files(server: Server) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this machine limits no process's open files")
    message = start_error(config(server, connections=hard))
    assert message.startswith("backend.connections: ")
    assert "ulimit -n" in message
