"""The parser of event streams, cut everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp.sut.http.sse import DONE, SSEParser

STREAM = (
    b"\xef\xbb\xbf: hello\n\n"
    b'data: {"text": "na\xc3\xafve \xf0\x9f\x98\x80"}\n\n'
    b"event: message\r\nid: 7\r\ndata:first\r\ndata: second\r\ndata:\r\n\r\n"
    b": ping\r\rdata: cr\rdata\r\r"
    b"retry: 10\n\n\n\ndata:  two spaces\n\ndataset: no\ndata: [DONE]\n\n"
)
EVENTS = [
    '{"text": "naïve 😀"}'.encode(),
    b"first\nsecond\n",
    b"cr\n",
    b" two spaces",
    DONE,
]


def parse(*chunks: bytes) -> list[bytes]:
    parser = SSEParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_whole_stream_at_once() -> None:
    assert parse(STREAM) == EVENTS


def test_cut_at_every_byte_position() -> None:
    for at in range(len(STREAM) + 1):
        assert parse(STREAM[:at], STREAM[at:]) == EVENTS, at


def test_one_byte_at_a_time() -> None:
    assert parse(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_comes_out_with_the_last_byte_of_its_blank_line(end: bytes) -> None:
    parser = SSEParser()
    assert parser.feed(b"data: x" + end) == []
    assert parser.incomplete
    assert parser.feed(end) == [b"x"]
    assert not parser.incomplete


def test_a_stream_that_ends_without_a_blank_line_is_incomplete() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\n\ndata: b\n") == [b"a"]
    assert parser.incomplete


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    parser = SSEParser()
    for _ in range(200_000):  # seconds become minutes where each piece copies the line
        parser.feed(b"x" * 10)
    assert parser.feed(b"\n\ndata: y\n\n") == [b"y"]


lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.lists(lines, min_size=1, max_size=3), max_size=5), ends, st.data())
def test_any_events_in_any_cut(events: list[list[str]], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(
        b"".join(b"data: " + line.encode() + end + b": note" + end for line in event) + end for event in events
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*pieces) == ["\n".join(event).encode() for event in events]


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"x", b"\ndata:\r\n")), max_size=8))
def test_any_bytes_give_the_same_events_in_pieces_as_at_once(pieces: list[bytes]) -> None:
    assert parse(*pieces) == parse(b"".join(pieces))
