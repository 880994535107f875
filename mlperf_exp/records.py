"""One row a query: when it was sent, when its first token and its end came, and what it gave.

The columns are plain arrays, written by LoadGen's thread and filled in by the system's threads; a lock is held once a
batch, so that the cost stays below a microsecond or two a query. They have their whole length from the start where it
is known, so that a run's memory does not grow as it goes on.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mlperf_exp.messages import Completion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class State(Protocol):
    """What a display and the live log are told; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def completed(self) -> int:
        """How many queries, or samples, are done."""

    @property
    def errors(self) -> int:
        """How many ended with an error."""

    def words(self) -> list[str]:
        """The rates, as a display shows them."""


@dataclass(frozen=True, slots=True)
class Live:
    """The state of a test now; rates and percentiles over what finished since the last look, NaN where nothing did."""

    elapsed_s: float
    issued: int
    completed: int
    errors: int
    tokens: int
    samples_per_second: float
    tokens_per_second: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float

    def words(self) -> list[str]:
        """See :class:`State`."""
        from mlperf_exp.display import number

        return [
            f"{number(self.samples_per_second)} samples/s",
            f"{number(self.tokens_per_second)} tokens/s",
            f"TTFT p50 {number(self.ttft_p50_ms)} p99 {number(self.ttft_p99_ms)} ms",
            f"TPOT p50 {number(self.tpot_p50_ms)} p99 {number(self.tpot_p99_ms)} ms",
            f"{self.errors:,} errors" if self.errors != 1 else "1 error",
        ]


_ROOM = 1024  # rows, where nothing is expected
_MOST = 1 << 22  # rows made in advance: 235 MB


class Records:
    """The queries of one LoadGen test; see the module. Times are ``perf_counter_ns``; 0 means not yet.

    ``expected`` is about how many there will be. The columns are longer than there are queries: rows from ``issued`` on
    are zeros.
    """

    def __init__(self, expected: int = 0) -> None:
        self.started_ns = time.perf_counter_ns()
        room = bytes(8 * min(max(expected, _ROOM), _MOST))
        self.responses = array("Q", room)  # LoadGen's response ids
        self.index = array("q", room)
        self.issued_ns = array("q", room)
        self.first_token_ns = array("q", room)
        self.completed_ns = array("q", room)
        self.tokens = array("q", room)
        self.issued = 0
        self.ended = 0
        self.errors: dict[int, str] = {}
        self.duplicates = 0
        self._order = array("q", room)  # rows in the order of their end
        self._lock = threading.Lock()
        self._seen = 0
        self._seen_tokens = 0
        self._seen_at_ns = self.started_ns

    @property
    def outstanding(self) -> int:
        """Queries sent and not finished."""
        return self.issued - self.ended

    @property
    def finished(self) -> array[int]:
        """Rows in the order of their end; a copy."""
        return self._order[: self.ended]

    def add(self, responses: Sequence[int], indices: Sequence[int]) -> int:
        """Append queries that are sent now; returns the first one's row."""
        now = time.perf_counter_ns()
        count = len(indices)
        with self._lock:
            first, end = self.issued, self.issued + count
            if end > len(self.index):
                self._extend(end)
            if count == 1:
                self.responses[first], self.index[first], self.issued_ns[first] = responses[0], indices[0], now
            else:
                self.responses[first:end] = array("Q", responses)
                self.index[first:end] = array("q", indices)
                self.issued_ns[first:end] = array("q", (now,)) * count
            self.issued = end
        return first

    def _extend(self, least: int) -> None:
        """Make room for ``least`` rows and half as many again."""
        more = bytes(8 * (least + least // 2 - len(self.index)))
        for column in (self.responses, self.index, self.issued_ns, self.first_token_ns, self.completed_ns, self.tokens,
                       self._order):  # fmt: skip
            column.frombytes(more)

    def claim_first_tokens(self, rows: Sequence[int]) -> list[int]:
        """Stamp first tokens; returns the rows for which this is the first word of it."""
        now = time.perf_counter_ns()
        fresh = []
        with self._lock:
            for row in rows:  # one by one: a row may be in a batch twice
                if not self.first_token_ns[row] and not self.completed_ns[row]:
                    self.first_token_ns[row] = now
                    fresh.append(row)
        return fresh

    def claim(self, completions: Sequence[Completion]) -> list[Completion]:
        """Stamp ends; returns those that were not finished before, and counts the others as duplicates."""
        now = time.perf_counter_ns()
        fresh = []
        with self._lock:
            for completion in completions:
                row = completion.row
                if self.completed_ns[row]:
                    self.duplicates += row not in self.errors  # after an error, an answer is late, not doubled
                    continue
                self.completed_ns[row] = now
                if completion.error is None:
                    self.tokens[row] = completion.generated
                else:
                    self.errors[row] = completion.error
                self._order[self.ended] = row
                self.ended += 1
                fresh.append(completion)
        return fresh

    def claim_many(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Stamp the ends of ``rows`` (each at most once), as :meth:`claim` does; returns which were not finished."""
        import numpy as np

        now = time.perf_counter_ns()
        with self._lock:
            completed = np.frombuffer(self.completed_ns, dtype=np.int64)  # gone before the lock: an array lent out
            fresh: NDArray[np.bool_] = completed[rows] == 0  # cannot grow
            new = rows if fresh.all() else rows[fresh]
            completed[new] = now
            del completed
            if len(new) < len(rows):
                self.duplicates += sum(row not in self.errors for row in rows[~fresh].tolist())
            self._order[self.ended : self.ended + len(new)] = array("q", new.tobytes())
            self.ended += len(new)
        return fresh

    def unfinished(self, first: int = 0, end: int | None = None) -> list[int]:
        """The rows that were sent and have not ended, of those from ``first`` up to ``end``."""
        with self._lock:
            some = self.completed_ns[first : self.issued if end is None else min(end, self.issued)]
        return [row for row, at in enumerate(some, first) if not at]

    def live(self) -> Live:
        """The state now; the window is the time since the last call."""
        import numpy as np

        now = time.perf_counter_ns()
        end = self.ended
        rows = np.array(self._order[self._seen : end], dtype=np.int64)
        if self.errors:
            rows = rows[[row not in self.errors for row in rows.tolist()]]
        window_s = max((now - self._seen_at_ns) / 1e9, 1e-9)
        self._seen, self._seen_at_ns = end, now
        low, high = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        issued, first, done, tokens = (
            np.array(column[low:high], dtype=np.int64)[rows - low]  # a copy of the window: the columns still grow
            for column in (self.issued_ns, self.first_token_ns, self.completed_ns, self.tokens)
        )
        ttft = (first - issued)[first > 0] / 1e6
        self._seen_tokens += int(tokens.sum())
        several = (tokens > 1) & (first > 0)
        tpot = (done - first)[several] / (tokens[several] - 1) / 1e6
        nan = float("nan")
        return Live(
            elapsed_s=(now - self.started_ns) / 1e9,
            issued=self.issued,
            completed=end,
            errors=len(self.errors),
            tokens=self._seen_tokens,
            samples_per_second=len(rows) / window_s,
            tokens_per_second=float(tokens.sum()) / window_s,
            ttft_p50_ms=float(np.percentile(ttft, 50)) if len(ttft) else nan,
            ttft_p99_ms=float(np.percentile(ttft, 99)) if len(ttft) else nan,
            tpot_p50_ms=float(np.percentile(tpot, 50)) if len(tpot) else nan,
            tpot_p99_ms=float(np.percentile(tpot, 99)) if len(tpot) else nan,
        )

    def write_parquet(self, path: Path, prompt_tokens: Sequence[int] | None) -> None:
        """Write a row a query: row, index, prompt_tokens, tokens, issued_s, ttft_ms, latency_ms, tpot_ms, error.

        ``issued_s`` counts from the first query; latencies count from sending; null where there is none.
        ``prompt_tokens[i]`` is the prompt's length of sample ``i``; None leaves the column out.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = self.issued  # LoadGen may still add to them: copies, all of this length
        issued = np.array(self.issued_ns[:count], dtype=np.int64)
        first = np.array(self.first_token_ns[:count], dtype=np.int64)
        done = np.array(self.completed_ns[:count], dtype=np.int64)
        tokens = np.array(self.tokens[:count], dtype=np.int64)
        failed = np.zeros(count, dtype=bool)
        failed[[row for row in list(self.errors) if row < count]] = True
        ended = (done > 0) & ~failed
        started = (first > 0) & ~failed
        several = ended & started & (tokens > 1)
        start = issued[0] if count else 0
        index = np.array(self.index[:count], dtype=np.int64)
        lengths = {} if prompt_tokens is None else {"prompt_tokens": np.asarray(prompt_tokens, dtype=np.int64)[index]}
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = {
                "row": pa.array(np.arange(count)),
                "index": pa.array(index),
                **{name: pa.array(values) for name, values in lengths.items()},
                "tokens": pa.array(tokens),
                "issued_s": pa.array((issued - start) / 1e9),
                "ttft_ms": pa.array((first - issued) / 1e6, mask=~started),
                "latency_ms": pa.array((done - issued) / 1e6, mask=~ended),
                "tpot_ms": pa.array((done - first) / (tokens - 1) / 1e6, mask=~several),
                "error": pa.array([self.errors.get(row) for row in range(count)], type=pa.string()),
            }
        aside = path.with_suffix(".parquet.part")
        pq.write_table(pa.table(columns), aside)
        aside.replace(path)
