from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp.report import series

LOADS = st.lists(
    st.tuples(st.floats(0, 1e4), st.floats(0.001, 1e3), st.integers(0, 128)), min_size=1, max_size=200
)  # issued at, lasting, tokens


@given(LOADS)
def test_rate_loses_no_query_and_no_token(load: list[tuple[float, float, int]]) -> None:
    issued, lasting, tokens = np.array(load, dtype=float).T
    rate = series.rate(issued + lasting, tokens)
    assert rate is not None
    width = np.diff(rate.edges_s)
    assert (width > 0).all()
    assert len(width) <= 121
    assert (rate.queries_per_second * width).sum() == pytest.approx(len(load))
    assert (rate.tokens_per_second * width).sum() == pytest.approx(tokens.sum())


@given(LOADS)
def test_flight_peaks_are_those_of_a_plain_count(load: list[tuple[float, float, int]]) -> None:
    issued, lasting, _ = np.array(load, dtype=float).T
    ended = issued + lasting
    flight = series.flight(issued, ended)
    assert flight is not None
    # The level changes upwards only where a query begins, so that the peak of all is at one of the starts.
    plain = max(int(((issued <= at) & (ended > at)).sum()) for at in issued)
    assert flight.peak.max() == plain
    for low, high, peak in zip(flight.edges_s[:-1], flight.edges_s[1:], flight.peak, strict=True):
        middle = (low + high) / 2
        assert peak >= ((issued <= middle) & (ended > middle)).sum()


def test_flight_of_a_known_load() -> None:
    flight = series.flight(np.array([0.0, 1.0, 2.0, 8.0]), np.array([3.0, 4.0, 10.0, 9.0]))
    assert flight is not None
    at = dict(zip(np.round(flight.edges_s[:-1], 6), flight.peak, strict=True))
    assert [at[t] for t in (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 9.0)] == [1, 2, 3, 2, 1, 2, 1]


@pytest.mark.parametrize("count", [1, 2, 99, 300, 301, 50_000])
def test_distribution_is_the_data_s(count: int) -> None:
    ms = np.random.default_rng(count).lognormal(3, 1, count)
    found = series.distribution(np.append(ms, np.nan))
    assert found is not None
    assert (found.count, len(found.ms) <= 300) == (count, True)
    assert found.p99 == np.percentile(ms, 99, method="inverted_cdf")
    for value, percent in zip(found.ms, found.percent, strict=True):
        assert percent == pytest.approx(100 * (ms <= value).mean())
    assert (found.ms[-1], found.percent[-1]) == (ms.max(), 100)


def test_nothing_to_draw() -> None:
    nothing = np.array([])
    assert series.distribution(np.array([np.nan])) is None
    assert series.rate(nothing, nothing) is None
    assert series.flight(nothing, nothing) is None


def test_live_log_of_any_length_is_a_few_bins(tmp_path: Path) -> None:
    line = (
        '{{"phase": "performance", "elapsed_s": {}, "samples_per_second": 2.0, '
        '"tokens_per_second": 9.0, "issued": 5, "completed": 2}}\n'
    )
    garbage = "\n[]\nnull\n{}\n\xff\x00\n"
    (tmp_path / "live.jsonl").write_text("".join(line.format(i + 1) for i in range(5000)) + garbage, encoding="latin-1")
    found = series.read(tmp_path)
    assert found.rate is not None
    assert found.flight is not None
    assert 60 <= len(found.rate.queries_per_second) <= 120
    assert found.rate.edges_s[-1] == 5000
    assert found.rate.queries_per_second == pytest.approx(2.0)
    assert found.flight.peak == pytest.approx(3)


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"phase": "start", "elapsed_s": 1}\n', '{"phase": "performance"}\n']
)
def test_live_log_without_a_load(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "live.jsonl").write_text(content)
    found = series.read(tmp_path)
    assert (found.rate, found.flight, found.source) == (None, None, "")
    assert "live.jsonl" in found.missing[-1]
