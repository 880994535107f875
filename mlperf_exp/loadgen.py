"""The real LoadGen around a system under test; the only import of ``mlperf_loadgen``.

LoadGen's ``StartTest`` has no way to be stopped, so it runs in a thread of its own while the caller's thread watches:
signals stay prompt, a system that is lost or stalls ends the test, and all queries are completed whatever happens.
A test that had to be left behind in LoadGen keeps its thread until the process ends (:func:`abandoned`).
"""

from __future__ import annotations

import gc
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlperf_loadgen as lg

from mlperf_exp.benchmarks import bounds_ms
from mlperf_exp.client import Cost, Meter
from mlperf_exp.config import Scenario
from mlperf_exp.errors import Interrupted, RunFailed
from mlperf_exp.files import write_atomic
from mlperf_exp.messages import Answers, Completion, Plan, Queries
from mlperf_exp.records import Live, Records
from mlperf_exp.sut.base import HoldsSamples, SystemUnderTest

_NO_TOKEN = array("i", [0])
_CLOCK_STEP_S = 0.5  # between two looks a tenth of a second apart
_GRACE_S = 5.0  # how long LoadGen may take to end by itself after an abort
_PART = 8192  # queries that are written down and handed over at once, of the millions that the Offline scenario sends
_abandoned = False

MODES = {"performance": lg.TestMode.PerformanceOnly, "accuracy": lg.TestMode.AccuracyOnly}


def abandoned() -> bool:
    """Whether a test was left behind in LoadGen: the process can then only be ended with ``os._exit``."""
    return _abandoned


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended: LoadGen's own word (None where it did not come to its end), our records, and any reason."""

    records: Records
    wall_s: float
    finished: bool
    failure: str | None
    interrupted: bool
    cost: Cost  # what the harness itself took


def settings(plan: Plan, mode: str, total_samples: int) -> tuple[lg.TestSettings, str]:
    """LoadGen's settings for one test, and the ``user.conf`` that says the same.

    The embedded ``mlperf.conf`` (bounds, seeds, token mode) is read for each test with ``conf_type`` 0, which,
    unlike 1, may be repeated in a process; then the plan's own values are set.
    """
    rules, model = plan.config.scenario, plan.config.model
    name = model.benchmark or "custom"
    if rules.name is Scenario.interactive:
        name += "-interactive"
    scenario = "Server" if rules.name is Scenario.interactive else rules.name.value
    chosen = lg.TestSettings()
    if chosen.FromConfig("", name, scenario, 0) != 0:
        raise RunFailed(f"LoadGen could not read its own configuration for {name}, {scenario}")
    chosen.scenario = getattr(lg.TestScenario, scenario)
    chosen.mode = MODES[mode]
    samples = rules.samples or min(total_samples, model.performance_samples or total_samples)
    user: dict[str, float] = {
        "min_duration": round(rules.min_duration_s * 1000),
        "performance_sample_count_override": samples,
    }
    chosen.min_duration_ms = round(rules.min_duration_s * 1000)
    chosen.performance_sample_count_override = samples
    if rules.min_query_count is not None:
        chosen.min_query_count = user["min_query_count"] = rules.min_query_count
    if rules.target_qps is not None and scenario == "Server":
        chosen.server_target_qps = user["target_qps"] = rules.target_qps
    if rules.target_qps is not None and scenario == "Offline":
        chosen.offline_expected_qps = user["target_qps"] = rules.target_qps
    if rules.expected_latency_ms is not None and scenario in ("SingleStream", "MultiStream"):
        expected_ns = round(rules.expected_latency_ms * 1e6)
        if scenario == "SingleStream":
            chosen.single_stream_expected_latency_ns = expected_ns
        else:
            chosen.multi_stream_expected_latency_ns = expected_ns
        user["target_latency"] = rules.expected_latency_ms
    bound = bounds_ms(model.benchmark, rules.name).get("latency")  # LoadGen knows it
    if rules.latency_ms is not None and rules.latency_ms != bound and scenario == "Server":
        chosen.server_target_latency_ns = round(rules.latency_ms * 1e6)
        user["target_latency"] = rules.latency_ms
    text = "".join(f"*.{scenario}.{key} = {value}\n" for key, value in user.items())
    return chosen, text


def run_test(
    plan: Plan,
    mode: str,
    sut: SystemUnderTest,
    total_samples: int,
    log_dir: Path,
    on_live: Callable[[Live], None],
    interval_s: float = 1.0,
    audit: str | None = None,
) -> Outcome:
    """Run one LoadGen test to its end, or until the system is lost, stalls, or a signal comes.

    ``on_live`` is called about every ``interval_s`` in the caller's thread. LoadGen's logs and ``user.conf`` go to
    ``log_dir``, which must exist. ``audit`` is the text of a compliance test's ``audit.config``: LoadGen lets it
    override the settings.

    Raises:
        RunFailed: LoadGen cannot read its configuration, or an earlier test was left behind in this process: LoadGen
            has one log for all, and another test would end the process.
    """
    if abandoned():
        raise RunFailed("LoadGen still runs an earlier test in this process: start the next one in one of its own")
    chosen, user_conf = settings(plan, mode, total_samples)
    write_atomic(log_dir / "user.conf", user_conf)
    audit_path = log_dir / "audit.config"  # named always: LoadGen would else apply a stray one in the working directory
    if audit is not None:
        write_atomic(audit_path, audit)
    driver = _Driver(sut, _expected(plan, chosen), bool(chosen.use_token_latencies))
    thread = threading.Thread(
        target=driver.start, args=(chosen, log_dir, audit_path, total_samples), name="loadgen", daemon=True
    )
    gc.unfreeze()  # of an earlier test in this process
    gc.collect()
    gc.freeze()  # what lives by now stays: the collector's pauses would stand in the latencies
    meter = Meter(sut)
    began = time.perf_counter()
    thread.start()
    interrupted = _watch(driver, thread, plan.config.scenario.stall_timeout_s, on_live, interval_s)
    if thread.is_alive():
        global _abandoned
        _abandoned = driver.closed = True
    finished = not driver.closed and not driver.crashed
    failure = driver.failure
    if failure is None and driver.crashed:
        failure = driver.crashed
    wall_s = time.perf_counter() - began
    cost = meter.stop({thread.name: driver.cpu_s})
    return Outcome(driver.records, wall_s, finished, failure, interrupted, cost)


def _expected(plan: Plan, chosen: lg.TestSettings) -> int:
    """About how many queries the test will have: what LoadGen makes for the time that it lasts, and some more."""
    rules = plan.config.scenario
    rate = rules.target_qps or (1e3 / rules.expected_latency_ms if rules.expected_latency_ms else 0.0)
    least, copy = int(chosen.min_query_count), int(chosen.performance_sample_count_override)
    return int(1.1 * max(least, rate * rules.min_duration_s)) + copy


def _watch(
    driver: _Driver,
    thread: threading.Thread,
    stall_timeout_s: float,
    on_live: Callable[[Live], None],
    interval_s: float,
) -> bool:
    """Wait for the test; returns whether it was interrupted. Aborts it where it cannot end well."""
    interrupted = False
    ahead_s = time.time() - time.monotonic()
    progress, progress_at = 0, time.monotonic()
    leave_at = float("inf")
    next_look = time.monotonic() + interval_s
    while thread.is_alive() and time.monotonic() < leave_at:
        try:
            driver.ended.wait(min(0.1, interval_s))
            if driver.ended.is_set():
                thread.join(_GRACE_S)
                break
            now = time.monotonic()
            step_s, ahead_s = time.time() - now - ahead_s, time.time() - now
            if abs(step_s) > _CLOCK_STEP_S:
                driver.failed(
                    f"the system's clock was set {'back' if step_s < 0 else 'forward'} by {abs(step_s):.1f} s during "
                    "the test, and LoadGen's schedule and latencies go by it"
                )
            if now >= next_look:
                next_look = now + interval_s
                on_live(driver.records.live())
            done = driver.records.ended
            if done != progress or not driver.records.outstanding:
                progress, progress_at = done, now
            elif now - progress_at > stall_timeout_s:
                driver.failed(
                    f"no query finished in {stall_timeout_s:g} s while {driver.records.outstanding} waited "
                    "(scenario.stall_timeout_s)"
                )
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
            driver.failed("interrupted")
        if driver.failure is not None and leave_at == float("inf"):
            leave_at = time.monotonic() + (0.5 if interrupted else _GRACE_S)
    return interrupted


class _Driver:
    """LoadGen's callbacks on one side, the system's sink on the other."""

    def __init__(self, sut: SystemUnderTest, expected: int, tokens: bool) -> None:
        self.sut = sut
        self._tokens = tokens  # LoadGen wants first tokens
        self.records = Records(expected)
        self.failure: str | None = None
        self.crashed: str | None = None
        self.closed = False  # the test was left behind: what LoadGen still issues is answered, not recorded
        self.ended = threading.Event()
        self.cpu_s = 0.0  # that LoadGen's thread took
        self._failing = threading.Lock()
        self._answering = threading.Lock()  # LoadGen frees a response at its end: no first token may come after it

    def start(self, chosen: lg.TestSettings, log_dir: Path, audit: Path, total_samples: int) -> None:
        """The body of LoadGen's thread."""
        try:
            output = lg.LogOutputSettings()
            output.outdir = str(log_dir)
            output.copy_summary_to_stdout = False
            logs = lg.LogSettings()
            logs.log_output = output
            logs.enable_trace = False
            sut = lg.ConstructFastSUT(self._issue, _nothing)
            qsl = lg.ConstructQSL(total_samples, chosen.performance_sample_count_override, self._load, self._unload)
            try:
                lg.StartTestWithLogSettings(sut, qsl, chosen, logs, str(audit))
            finally:
                lg.DestroyQSL(qsl)
                lg.DestroySUT(sut)
        except Exception as error:  # LoadGen's own failures: its thread must not end in silence
            self.crashed = f"LoadGen failed: {error}"
        finally:
            self.cpu_s = time.thread_time()
            self.ended.set()

    def _load(self, indices: list[int]) -> None:
        if isinstance(self.sut, HoldsSamples) and self.failure is None:
            try:
                self.sut.load(indices)
            except Exception as error:  # as in _issue
                self.failed(f"{type(self.sut).__name__} could not load its samples: {error}")

    def _unload(self, indices: list[int]) -> None:
        if isinstance(self.sut, HoldsSamples) and self.failure is None:
            try:
                self.sut.unload(indices)
            except Exception as error:  # as in _issue
                self.failed(f"{type(self.sut).__name__} could not let go of its samples: {error}")

    def _issue(self, responses: list[int], indices: list[int]) -> None:
        if self.closed:
            self._no_tokens(responses)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(response, 0, 0, 0) for response in responses])
            return
        try:
            if len(indices) <= _PART:
                self._send(responses, indices)
                return
            for begin in range(0, len(indices), _PART):  # the system begins while the rest is written down
                self._send(responses[begin : begin + _PART], indices[begin : begin + _PART])
        except Exception as error:  # an exception in LoadGen's callback would abort the process
            self.failed(f"{type(self.sut).__name__} could not take a query: {error}")

    def _send(self, responses: list[int], indices: list[int]) -> None:
        samples = array("q", indices)
        first = self.records.add(responses, samples)
        queries = Queries(first, samples)
        if self.failure is None:
            self.sut.submit(queries, self)
        if self.failure is not None:  # lost before, or while this was sent
            self._end_waiting(first, first + len(samples))

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        with self._answering:
            fresh = self.records.claim_first_tokens(rows)
            if not fresh:
                return
            buffer = array("i", tokens or bytes(4 * len(rows)))
            address, _ = buffer.buffer_info()
            place = {row: address + 4 * i for i, row in enumerate(rows)}
            responses = self.records.responses
            lg.FirstTokenComplete([lg.QuerySampleResponse(responses[row], place[row], 4) for row in fresh])

    def complete(self, completions: Sequence[Completion]) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        with self._answering:
            self._end(completions)

    def _end_waiting(self, first: int = 0, end: int | None = None) -> None:
        """Complete with the failure what has not ended of these rows; no answer comes in between, to be doubled."""
        with self._answering:
            self._end([Completion(row, error=self.failure) for row in self.records.unfinished(first, end)])

    def _end(self, completions: Sequence[Completion]) -> None:
        fresh = self.records.claim(completions)
        if not fresh:
            return
        responses, started = self.records.responses, self.records.first_token_ns
        silent = [responses[c.row] for c in fresh if c.error is not None and not started[c.row]]
        if silent:
            self._no_tokens(silent)
        buffers, answers = [], []
        for completion in fresh:
            tokens = completion.tokens
            buffer = tokens if isinstance(tokens, array) and tokens.typecode == "i" else array("i", tokens)
            address, size = buffer.buffer_info()
            buffers.append(buffer)  # LoadGen copies inside the call only: keep it alive until then
            count = completion.generated
            answers.append(lg.QuerySampleResponse(responses[completion.row], address, 4 * size, count))
        lg.QuerySamplesComplete(answers)

    def _no_tokens(self, responses: Sequence[int]) -> None:
        """Before errors without a token: where LoadGen logs answers it reads the first one, and crashes without it."""
        if self._tokens:
            address, _ = _NO_TOKEN.buffer_info()
            lg.FirstTokenComplete([lg.QuerySampleResponse(response, address, 4) for response in responses])

    def complete_many(self, answers: Answers) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        rows, data, offsets = answers
        with self._answering:
            fresh = self.records.claim_many(rows)
            starts, sizes = data.ctypes.data + offsets[:-1], offsets[1:] - offsets[:-1]
            if not fresh.all():
                rows, starts, sizes = rows[fresh], starts[fresh], sizes[fresh]
            responses = map(self.records.responses.__getitem__, rows.tolist())
            made = map(lg.QuerySampleResponse, responses, starts.tolist(), sizes.tolist())
            lg.QuerySamplesComplete(list(made))

    def failed(self, reason: str) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        with self._failing:
            if self.failure is None:
                self.failure = reason
        self._end_waiting()


def _nothing() -> None:
    """LoadGen's callback to flush: nothing is held back."""
