"""What travels between fleet and replicas: any messages, cut anywhere, arrive whole and in order."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp import cli
from mlperf_exp.messages import Answers, Completion
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.replicas import wire
from mlperf_exp.sut.replicas.delivery import Delivery
from mlperf_exp.sut.replicas.fleet import Fleet
from mlperf_exp.sut.replicas.replica import Outbox, Replica
from mlperf_exp.sut.routing.router import Router

numbers = st.lists(st.integers(0, 2**40), max_size=5)
done = st.builds(
    wire.Done,
    st.integers(0, 2**40),
    st.binary(max_size=40),
    st.none() | st.text(max_size=20),
    st.none() | st.integers(0, 999),
    st.integers(0, 10**9),
)
said = st.one_of(
    st.builds(wire.Answers, numbers, numbers, st.lists(done, max_size=3)),
    st.builds(wire.Many, st.binary(), st.binary(), st.sampled_from(["int32", "uint8"]), st.binary(), st.binary()),
    st.builds(wire.Lost, st.text()),
    st.builds(wire.Log, st.binary()),
    st.builds(wire.Warned, st.text()),
    st.builds(wire.Hello, st.integers(0, 99), st.text(), st.text(), st.integers(0, 10**6)),
    st.just(wire.Beat()),
)


@given(st.lists(said, max_size=6), st.lists(st.integers(1, 50), max_size=30))
def test_messages_survive_any_cut_of_the_stream(messages: list[wire.FromReplica], cuts: list[int]) -> None:
    stream = b"".join(bytes(wire.frame(message)) for message in messages)
    frames, arrived = wire.Frames(), []
    for size in [*cuts, max(1, len(stream))]:
        piece, stream = stream[:size], stream[size:]
        arrived += [wire.from_replica.decode(each) for each in frames.feed(piece)]
    arrived += [wire.from_replica.decode(each) for each in frames.feed(stream)]
    assert arrived == messages


def test_a_peer_that_announces_too_much_is_refused_before_it_sends_it() -> None:
    with pytest.raises(wire.TooLongError):
        list(wire.Frames(wire.MOST_UNKNOWN).feed(b"GET / HTTP/1.1\r\n"))


def test_an_outbox_batches_what_came_and_says_how_long_each_was_held() -> None:
    now = 0
    outbox = Outbox(lambda: now)
    outbox.received([7, 8, 9])
    now = 5_000_000
    outbox.first_token([7, 8], [1, 2])
    outbox.first_token([9])
    outbox.complete([Completion(7, array("i", [1, 4]))])
    now = 9_000_000
    outbox.complete([Completion(8, [2, 5]), Completion(9, error="no")])
    (frame,) = outbox.take(0)
    answers = wire.from_replica.decode(bytes(frame)[4:])
    assert isinstance(answers, wire.Answers)
    assert (answers.first, answers.first_ids) == ([7, 8, 9], [1, 2, 0])
    assert [(d.ticket, d.tokens, d.error, d.held_us) for d in answers.done] == [
        (7, array("i", [1, 4]).tobytes(), None, 5000),
        (8, array("i", [2, 5]).tobytes(), None, 9000),
        (9, b"", "no", 9000),
    ]
    (beat,) = outbox.take(0)
    assert wire.from_replica.decode(bytes(beat)[4:]) == wire.Beat()


def test_answers_in_arrays_stay_arrays() -> None:
    outbox = Outbox(lambda: 3_000_000)
    outbox.received([4, 5])
    outbox.complete_many(Answers(np.array([4, 5]), np.array([1, 2, 3], dtype=np.int32), np.array([0, 4, 12])))
    (frame,) = outbox.take(0)
    many = wire.from_replica.decode(bytes(frame)[4:])
    assert isinstance(many, wire.Many)
    assert np.frombuffer(many.tickets, np.int64).tolist() == [4, 5]
    assert np.frombuffer(many.data, np.int32).tolist() == [1, 2, 3]
    assert np.frombuffer(many.offsets, np.int64).tolist() == [0, 4, 12]


class Warns:
    """An engine that was started without something."""

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        return {"start_s": 1.0}

    def report(self) -> tuple[dict[str, float], tuple[str, ...]]:
        return {}, ("slower than planned",)

    def stop(self) -> None:
        pass


def test_what_engines_warn_of_arrives_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        plan = make_plan(compose("config", ["backend=simulated", "backend.replicas=2"]), tmp_path)
    monkeypatch.setattr("mlperf_exp.sut.create", lambda plan, model: Warns())
    monkeypatch.setattr(Replica, "_print_to_log", lambda self: None)
    monkeypatch.setattr(Replica, "_end_process", lambda self: None)
    fleet = Fleet(plan, None, lambda on_event: SimpleNamespace())  # type: ignore[arg-type, return-value]
    fleet._router = Router(2, 8, routing=plan.config.backend.routing)
    fleet._delivery = Delivery(fleet._router)
    fleet._roster.open()
    fleet._roster.nodes = ["here", "here"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for number in range(2):
            replica = Replica(number, plan, None, server.getsockname(), "token")
            assert replica.start([]) == {"start_s": 1.0}
            link, _ = server.accept()
            replica.stop()
            with link:
                stream = b"".join(iter(lambda link=link: link.recv(1 << 16), b""))  # type: ignore[misc]
            for each in wire.Frames().feed(stream):
                message = wire.from_replica.decode(each)
                if not isinstance(message, wire.Hello):
                    fleet._message(number, message)
    assert fleet.report()[1] == ("slower than planned",)
