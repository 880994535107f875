"""The rows of a test: every query ends once, whatever order its events come in."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp.messages import Completion
from mlperf_exp.records import Records


def filled(count: int) -> Records:
    records = Records()
    records.add(range(1000, 1000 + count), range(count))
    return records


def test_rows_count_through_all_batches() -> None:
    records = Records()
    assert records.add([7, 8], [3, 1]) == 0
    assert records.add([9], [3]) == 2
    assert records.add([], []) == 3
    assert list(records.responses[:3]) == [7, 8, 9]
    assert list(records.index[:3]) == [3, 1, 3]
    assert records.issued == records.outstanding == 3
    assert records.unfinished() == [0, 1, 2]


def test_a_second_end_is_a_duplicate_and_changes_nothing() -> None:
    records = filled(2)
    assert len(records.claim([Completion(0, (1, 2, 3))])) == 1
    at = records.completed_ns[0]
    assert records.claim([Completion(0, error="late"), Completion(0, (1,)), Completion(1, (4,))]) == [
        Completion(1, (4,))
    ]
    assert records.duplicates == 2
    assert records.completed_ns[0] == at
    assert list(records.tokens[:2]) == [3, 1]
    assert records.errors == {}
    assert records.finished.tolist() == [0, 1]


def test_twice_in_one_batch_is_a_duplicate_too() -> None:
    records = filled(1)
    assert records.claim([Completion(0, (1,)), Completion(0, (1, 2))]) == [Completion(0, (1,))]
    assert (records.duplicates, records.tokens[0]) == (1, 1)


def test_the_systems_own_count_of_tokens_wins() -> None:
    records = filled(1)
    records.claim([Completion(0, (1, 2), n_tokens=9)])
    assert records.tokens[0] == 9


def test_a_first_token_counts_once_and_not_after_the_end() -> None:
    records = filled(3)
    assert records.claim_first_tokens([0, 1]) == [0, 1]
    at = records.first_token_ns[0]
    assert records.claim_first_tokens([0, 2]) == [2]
    assert records.first_token_ns[0] == at
    other = filled(1)
    other.claim([Completion(0, (1,))])
    assert other.claim_first_tokens([0]) == []
    assert other.first_token_ns[0] == 0


_rows = st.integers(0, 9)
_events = st.one_of(
    st.tuples(st.just("first"), st.lists(_rows, max_size=4)),
    st.tuples(st.just("end"), st.lists(_rows, max_size=4)),
    st.tuples(st.just("error"), st.lists(_rows, max_size=4)),
    st.tuples(st.just("live"), st.just([])),
)


@given(st.lists(_events, max_size=40))
def test_any_order_of_events_ends_each_query_once(events: list[tuple[str, list[int]]]) -> None:
    records = filled(10)
    ends: list[int] = []
    firsts: list[int] = []
    told = 0
    for kind, rows in events:
        if kind == "first":
            firsts += records.claim_first_tokens(rows)
        elif kind == "live":
            live = records.live()
            assert (live.issued, live.completed, live.errors) == (10, len(ends), len(records.errors))
        else:
            error = "no" if kind == "error" else None
            for row in rows:
                told += row in ends and row not in records.errors  # answered twice; an answer after an error is late
                ends += [c.row for c in records.claim([Completion(row, (1, 2), error)])]
    assert len(ends) == len(set(ends))
    assert len(firsts) == len(set(firsts))
    assert records.finished.tolist() == ends
    assert records.duplicates == told
    assert sorted(ends + records.unfinished()) == list(range(10))
    assert records.outstanding == 10 - len(ends)
    for row in range(10):
        assert (records.completed_ns[row] > 0) == (row in ends)
        assert records.tokens[row] == (2 if row in ends and row not in records.errors else 0)
        if row in ends and row in firsts:
            assert records.issued_ns[row] <= records.first_token_ns[row] <= records.completed_ns[row]


def test_many_threads_end_each_query_once() -> None:
    records, count = Records(), 4000
    fresh: list[int] = []
    ready = threading.Barrier(5)

    def work() -> None:
        ready.wait()
        for row in range(count):
            while records.issued <= row:
                pass
            records.claim_first_tokens([row])
            fresh.extend(c.row for c in records.claim([Completion(row, (1,))]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    for row in range(0, count, 10):
        records.add(range(row, row + 10), range(10))
    for thread in threads:
        thread.join(30)
    assert sorted(fresh) == list(range(count))
    assert records.duplicates == 3 * count
    assert records.outstanding == 0


def test_live_figures_are_of_the_window_since_the_last_look() -> None:
    records = filled(4)
    empty = records.live()
    assert (empty.completed, empty.tokens, empty.samples_per_second) == (0, 0, 0.0)
    assert math.isnan(empty.ttft_p50_ms) and math.isnan(empty.tpot_p99_ms)
    start = records.issued_ns[0]
    records.claim_first_tokens([0, 1, 2])
    records.claim([Completion(0, range(11)), Completion(1, (1,)), Completion(2, error="no")])
    for row, first, end in ((0, 5, 25), (1, 7, 7), (2, 1, 1)):
        records.first_token_ns[row] = start + first * 10**6
        records.completed_ns[row] = start + end * 10**6
    live = records.live()
    assert (live.issued, live.completed, live.errors, live.tokens) == (4, 3, 1, 12)
    assert live.ttft_p50_ms == pytest.approx(6.0)  # of rows 0 and 1: what failed has no latency
    assert live.tpot_p50_ms == pytest.approx(2.0)  # (25 - 5) / 10; one token has no time per further token
    assert live.tokens_per_second == pytest.approx(6 * live.samples_per_second)
    after = records.live()
    assert (after.completed, after.tokens, after.samples_per_second) == (3, 12, 0.0)


def test_parquet_has_a_row_a_query_and_null_where_there_is_nothing(tmp_path: Path) -> None:
    records = Records()
    records.add([1, 2, 3, 4], [2, 0, 1, 2])
    records.claim_first_tokens([0, 1])
    records.claim([Completion(0, (1, 2, 3)), Completion(1, error="bröken, \n twice"), Completion(2, (9,))])
    start = records.issued_ns[0]
    records.first_token_ns[0], records.completed_ns[0] = start + 10**7, start + 3 * 10**7
    path = tmp_path / "queries.parquet"
    records.write_parquet(path, prompt_tokens=[100, 101, 102])
    table = pq.read_table(path).to_pydict()
    assert table["row"] == [0, 1, 2, 3]
    assert table["index"] == [2, 0, 1, 2]
    assert table["prompt_tokens"] == [102, 100, 101, 102]
    assert table["tokens"] == [3, 0, 1, 0]
    assert table["issued_s"] == [0.0] * 4
    assert table["error"] == [None, "bröken, \n twice", None, None]
    assert table["ttft_ms"] == [10.0, None, None, None]
    assert table["latency_ms"][0] == 30.0
    assert [value is None for value in table["latency_ms"]] == [False, True, False, True]
    assert table["tpot_ms"] == [10.0, None, None, None]
    assert [p.name for p in tmp_path.iterdir()] == ["queries.parquet"]


@pytest.mark.parametrize("expected", [0, 5000, 20000])
def test_more_queries_than_expected_find_room(expected: int) -> None:
    records, count = Records(expected), 12_000
    for begin in range(0, count, 5):
        records.add(range(begin, begin + 4), range(4))
        records.add([begin + 4], [4])
    records.claim_many(np.arange(0, count, 2))
    records.claim([Completion(row, (1,)) for row in range(1, count, 2)])
    assert list(records.responses[:count]) == list(range(count))
    assert (records.issued, records.outstanding, records.unfinished()) == (count, 0, [])
    assert sorted(records.finished) == list(range(count))


def test_columns_of_the_expected_length_do_not_grow() -> None:
    records = Records(4000)
    before = [column.buffer_info() for column in (records.responses, records.completed_ns)]
    records.add(range(4000), range(4000))
    assert [column.buffer_info() for column in (records.responses, records.completed_ns)] == before


def test_parquet_of_nothing_is_a_table_without_rows(tmp_path: Path) -> None:
    Records().write_parquet(tmp_path / "none.parquet", [])
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_batch_that_is_half_appended_is_not_read(tmp_path: Path) -> None:
    """A test that is left behind in LoadGen may be in the middle of ``add`` while the records are written."""
    records = filled(3)
    records.claim([Completion(0, (1,))])
    records.index[3], records.issued_ns[3] = 0, records.issued_ns[0]  # counted once its row is whole
    records.write_parquet(tmp_path / "queries.parquet", [1, 1, 1])
    assert pq.read_table(tmp_path / "queries.parquet").num_rows == records.issued == 3
    assert np.isfinite(records.live().elapsed_s)
