"""The messages that travel along the main path: Plan -> Measurement -> Verdict -> Result.

All are frozen; units are in the names; times are ``time.perf_counter_ns`` unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from mlperf_exp.config import Config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Query(NamedTuple):
    """One sample that LoadGen asks for.

    ``row`` counts the queries of one test from 0; ``sample`` is its place in the data set.
    """

    row: int
    sample: int


class Queries(Sequence[Query]):
    """Queries that LoadGen sent in one call: rows ``first``, ``first + 1``, ... ask for ``samples`` in turn.

    A sequence of :class:`Query` for systems that take them one by one; the two fields for those that work on arrays.
    """

    __slots__ = ("first", "samples")

    def __init__(self, first: int, samples: Sequence[int]) -> None:
        self.first, self.samples = first, samples

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, place: int) -> Query: ...
    @overload
    def __getitem__(self, place: slice) -> list[Query]: ...
    def __getitem__(self, place: int | slice) -> Query | list[Query]:
        if isinstance(place, slice):
            return [Query(self.first + i, self.samples[i]) for i in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        return Query(self.first + at, self.samples[at])

    def __iter__(self) -> Iterator[Query]:
        return map(Query, range(self.first, self.first + len(self.samples)), self.samples)


class Answers(NamedTuple):
    """The ends of many queries at once, without tokens or errors: ``data`` holds the answers one after the other.

    Query ``rows[i]`` gets bytes ``offsets[i]`` to ``offsets[i + 1]`` of ``data``, which is contiguous.
    """

    rows: NDArray[np.int64]
    data: NDArray[Any]
    offsets: NDArray[np.int64]


class Completion(NamedTuple):
    """The end of one query: its output tokens (int32 ids without the prompt), or an error."""

    row: int
    tokens: Sequence[int] = ()
    error: str | None = None
    n_tokens: int | None = None  # where the system counts them itself; None: len(tokens)

    @property
    def generated(self) -> int:
        """How many tokens the system generated."""
        return len(self.tokens) if self.n_tokens is None else self.n_tokens


@dataclass(frozen=True, slots=True)
class Derived:
    """A setting that the plan filled in because the user had left it open."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do: the checked configuration and everything derived from it.

    ``engine`` holds vLLM's arguments under vLLM's own names; ``run_dir`` is absolute.
    """

    config: Config
    run_dir: Path
    engine: dict[str, Any]
    modes: tuple[str, ...]  # "performance", "accuracy", in this order
    compliance: tuple[str, ...] = ()  # "TEST06", ...: run after these
    derived: tuple[Derived, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of a text data set: the prompt as token ids, and the reference text."""

    tokens: tuple[int, ...]
    reference: str


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy over a whole data set.

    ``metrics`` carries, for texts, rouge1, rouge2, rougeL, rougeLsum (x 100, 4 decimals), gen_len (characters) and
    gen_num (samples); for images top1, for questions f1 and exact_match (per cent). ``samples`` counts what was scored.
    ``notes`` says what makes the score not comparable with the reference's.
    """

    metrics: dict[str, float]
    samples: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Test:
    """One LoadGen test: its detail log as a mapping, and our own records' file.

    ``loadgen`` maps the keys of ``mlperf_log_detail.txt`` to their last value; it is empty where LoadGen did
    not come to its end. ``log_dir`` holds LoadGen's logs and ``queries.parquet``.
    """

    mode: str
    log_dir: Path
    loadgen: dict[str, Any]
    issued: int
    completed: int
    errors: int
    first_error: str | None
    wall_s: float
    window_ns: tuple[int, int] | None = None  # first query sent, last answer; None: no query was sent


@dataclass(frozen=True, slots=True)
class ComplianceTest:
    """One of MLPerf's compliance tests, or of training's its checker's word on the log, verified.

    ``checks`` names what was looked at; None: does not apply in this scenario. ``reasons`` are clauses without a full
    stop, one for each check that failed. ``log_dir`` holds LoadGen's logs, ``audit.config`` and ``verify_*.txt``.
    """

    name: str
    passed: bool
    checks: dict[str, bool | None]
    log_dir: Path
    figures: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStart:
    """The start of the system that a run used; ``run_dir`` is that of the run which started it."""

    run_dir: Path
    seconds: float  # with warm-up
    reused: bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured, before it is judged. ``failure`` is the reason why a run broke, if it did."""

    metrics: dict[str, float]
    phases: dict[str, float]
    tests: tuple[Test, ...] = ()
    compliance: tuple[ComplianceTest, ...] = ()
    score: Score | None = None
    failure: str | None = None
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    telemetry: dict[str, Any] = field(default_factory=dict)
    engine: EngineStart | None = None  # None: no system was started
    repeats: tuple[Measurement, ...] = ()  # the repetitions after the first
    repeated: dict[str, float] = field(default_factory=dict)  # the first repetition's own metrics
    accuracy_from: dict[str, str] | None = None  # the earlier run whose score this is
    search: dict[str, Any] | None = None  # what search.json holds, where a rate was looked for
    training: dict[str, Any] = field(default_factory=dict)  # how a training ended; empty for inference
    window_ns: tuple[int, int] | None = None  # of a training: run_start to run_stop


@dataclass(frozen=True, slots=True)
class Verdict:
    """Validity by MLPerf's rules, with one sentence for each reason against it."""

    valid: bool
    reasons: tuple[str, ...]
    accuracy: dict[str, Any] = field(default_factory=dict)
    compliance: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return asdict(self)
