"""``queries.parquet`` and ``live.jsonl`` -> the points of the charts, a few hundred however many queries there were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.report.text import number

Floats = NDArray[np.float64]
_COLUMNS = ("issued_s", "tokens", "ttft_ms", "tpot_ms", "latency_ms")
_BINS = 120
_WIDTHS_S = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]


@dataclass(frozen=True, slots=True)
class Distribution:
    """An empirical distribution: ``percent[i]`` % of the queries took at most ``ms[i]``."""

    ms: Floats
    percent: Floats
    count: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Rates in bins of time: ``edges_s`` has one element more than the others."""

    edges_s: Floats
    queries_per_second: Floats
    tokens_per_second: Floats


@dataclass(frozen=True, slots=True)
class Flight:
    """The most queries in flight in each bin of time; ``edges_s`` has one element more."""

    edges_s: Floats
    peak: Floats


@dataclass(frozen=True, slots=True)
class Series:
    """What the charts draw, and where it comes from. None: not known, ``missing`` says why."""

    source: str = ""
    distributions: dict[str, Distribution] = field(default_factory=dict)
    rate: Rate | None = None
    flight: Flight | None = None
    missing: tuple[str, ...] = ()


def read(run_dir: Path) -> Series:
    """The series of the performance test, of the accuracy test where there is no other, else of ``live.jsonl``."""
    missing = []
    for mode in ("performance", "accuracy"):
        path = run_dir / mode / "queries.parquet"
        if not path.is_file():
            if mode == "performance":  # not every run has an accuracy test, and its times are no result
                missing.append("performance/queries.parquet is missing.")
            continue
        try:
            columns = _columns(path)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:  # what pyarrow's own errors derive from
            missing.append(f"{mode}/queries.parquet cannot be read ({type(error).__name__}).")
            continue
        if not len(columns["issued_s"]):
            missing.append(f"{mode}/queries.parquet holds no query.")
            continue
        return _from_queries(f"{mode} test, {mode}/queries.parquet", columns)
    return _from_live(run_dir / "live.jsonl", missing)


def distribution(ms: Floats) -> Distribution | None:
    """The distribution of ``ms``, finer towards its tail; None where there is no value."""
    ms = np.sort(ms[np.isfinite(ms)])
    count = len(ms)
    if not count:
        return None
    if count <= 300:
        rank = np.arange(1, count + 1)
    else:
        share = np.concatenate([np.linspace(0, 0.98, 150), np.linspace(0.98, 1, 101)[1:]])
        rank = np.unique(np.clip(np.ceil(share * count).astype(np.int64), 1, count))
    p50, p99 = np.percentile(ms, [50, 99], method="inverted_cdf")
    return Distribution(ms[rank - 1], 100.0 * rank / count, count, float(p50), float(p99))


def rate(ended_s: Floats, tokens: Floats) -> Rate | None:
    """Completions and their tokens in bins of time; the last bin is as long as it really was."""
    edges = _edges(float(ended_s.max())) if len(ended_s) else None
    if edges is None:
        return None
    width = np.diff(edges)
    queries = np.histogram(ended_s, edges)[0] / width
    return Rate(edges, queries, np.histogram(ended_s, edges, weights=tokens)[0] / width)


def flight(issued_s: Floats, ended_s: Floats) -> Flight | None:
    """How many queries were in flight, as the peak of each bin."""
    edges = _edges(float(ended_s.max())) if len(ended_s) else None
    if edges is None:
        return None
    at = np.concatenate([issued_s, ended_s])
    change = np.concatenate([np.ones(len(issued_s)), -np.ones(len(ended_s))])
    order = np.lexsort((change, at))  # at one instant the end comes before the next start
    at, level = at[order], np.cumsum(change[order])
    peak = np.zeros(len(edges) - 1)
    bins = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(peak) - 1)
    np.maximum.at(peak, bins, level)
    before = np.searchsorted(at, edges[:-1], side="right")  # a bin without an event keeps the level it began with
    return Flight(edges, np.maximum(peak, np.where(before > 0, level[before - 1], 0)))


def _edges(end_s: float) -> Floats | None:
    """Bins of a round width up to ``end_s``; a last sliver joins its neighbour, as its rate would be noise."""
    if not np.isfinite(end_s) or end_s <= 0:
        return None
    width = next((w for w in _WIDTHS_S if end_s / w <= _BINS), end_s / _BINS)
    edges = np.append(np.arange(0, end_s, width), end_s)
    return np.delete(edges, -2) if len(edges) > 2 and edges[-1] - edges[-2] < width / 2 else edges


def _columns(path: Path) -> dict[str, Floats]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(_COLUMNS))
    return {name: np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64) for name in _COLUMNS}


def _from_queries(source: str, columns: dict[str, Floats]) -> Series:
    issued, ended = columns["issued_s"], columns["issued_s"] + columns["latency_ms"] / 1e3
    done = np.isfinite(ended)
    missing = []
    if not done.all():
        missing.append(
            f"{np.count_nonzero(~done):,} of {len(done):,} queries ended with an error or not at all; "
            "the charts leave them out."
        )
    named = {key: distribution(columns[f"{key}_ms"]) for key in ("ttft", "tpot", "latency")}
    return Series(
        source,
        {key: value for key, value in named.items() if value is not None},
        rate(ended[done], columns["tokens"][done]),
        flight(issued[done], ended[done]),
        tuple(missing),
    )


def _live_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log that may have been cut off in the middle of one."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
    except OSError:
        return


def _from_live(path: Path, missing: list[str]) -> Series:
    """Rates and queries in flight about every second, which a run that died has left; no distributions."""
    keys = ("elapsed_s", "samples_per_second", "tokens_per_second", "issued", "completed")
    rows: list[list[float]] = []
    for line in _live_lines(path):
        values = [number(line.get(key)) for key in keys]
        at = values[0]
        if line.get("phase") == "performance" and at is not None and at > (rows[-1][0] if rows else 0.0):
            rows.append([0.0 if v is None else v for v in values])
    if not rows:
        note = "live.jsonl is missing." if not path.is_file() else "live.jsonl holds nothing of the performance test."
        return Series(missing=(*missing, note))
    at, samples, tokens, issued, completed = np.array(rows, dtype=np.float64).T
    lengths = np.diff(at, prepend=0.0)  # a line's rates hold for the time since the line before
    first = np.arange(0, len(at), -(-len(at) // _BINS))  # of each group of lines that one bin takes together
    edges = np.append(0.0, at[np.append(first[1:], len(at)) - 1])
    width = np.diff(edges)
    return Series(
        "performance test, live.jsonl (about one line a second)",
        rate=Rate(
            edges, np.add.reduceat(samples * lengths, first) / width, np.add.reduceat(tokens * lengths, first) / width
        ),
        flight=Flight(edges, np.maximum.reduceat(np.maximum(issued - completed, 0), first)),
        missing=tuple(missing),
    )
