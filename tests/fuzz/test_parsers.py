"""The parsers against mangled files: each raises its own errors only. ``make fuzz`` does the same by coverage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import PARSERS, Parser

WORDS = [b"", b"null", b"{}", b"[]", b'"', b"1e999", b"-1", b"NaN", b"\xff\xfe", b"\x00", b"9" * 30, b"true",
         b"[" * 2000, b"\\ud800", b"\n", b": ", b","]  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid input with a few pieces taken out, doubled, or replaced."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 24)))
        piece = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=6), st.just(data[begin:end] * 2)))
        data = data[:begin] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_the_seed_is_read(name: str) -> None:
    PARSERS[name].call(PARSERS[name].seeds[0])


@pytest.mark.parametrize("name", PARSERS)
def test_nothing_but_its_own_errors(name: str) -> None:
    parser: Parser = PARSERS[name]

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(mangled(parser.seeds))
    def hold(data: bytes) -> None:
        with contextlib.suppress(*parser.allowed):
            parser.call(data)

    hold()
