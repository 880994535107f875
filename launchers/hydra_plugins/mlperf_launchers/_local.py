"""The core of the launcher ``local``: a batch of jobs, each in a process of its own, at most so many at once.

The launcher sleeps in one ``select`` until a job ends, prints, runs out of time, or a signal arrives: it takes nothing
from what the jobs measure. The first SIGINT, SIGTERM or SIGHUP interrupts every running job, which then keeps what it
has; a further SIGINT kills them.

Results are in the jobs' order, whatever the order of their ends. Hydra raises the first failure among them at the end:
the exit status of a sweep is that of the first job that failed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra_plugins.mlperf_launchers import _job, _summary
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._job import Job, JobLost
from hydra_plugins.mlperf_launchers._process import JobProcess, Output, say
from hydra_plugins.mlperf_launchers._summary import Row
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp import signals
from mlperf_exp.cli import explain
from mlperf_exp.errors import ExperimentError, Interrupted, RunFailed, UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers.local import LocalLauncher

_SAME_KEY_S = 0.5  # two SIGINTs closer than this are one key press that arrived by two ways


def check(launcher: LocalLauncher) -> None:
    """Refuse values that no sweep can run with.

    Raises:
        UserError: naming the key.
    """
    if launcher.max_parallel < 1:
        raise UserError("hydra.launcher.max_parallel", f"{launcher.max_parallel} jobs at once", "Give 1 or more")
    if launcher.timeout_s is not None and not launcher.timeout_s > 0:
        raise UserError(
            "hydra.launcher.timeout_s", f"{launcher.timeout_s:g} s", "Give more than 0, or null for no limit"
        )
    if not launcher.grace_s >= 0:
        raise UserError("hydra.launcher.grace_s", f"{launcher.grace_s:g} s", "Give 0 or more")
    for name, value in launcher.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise UserError("hydra.launcher.env", f"{name!r} cannot be an environment variable", "Name it otherwise")


def launch(launcher: LocalLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """Run the jobs, show the summary, return the results in order.

    Raises:
        Interrupted: by a signal, after all that ran has ended.
    """
    assert launcher.config is not None
    setup_globals()
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    sweep_dir = Path(str(launcher.config.hydra.sweep.dir))
    sweep_dir.mkdir(parents=True, exist_ok=True)
    batch = Batch(launcher, job_overrides, first)
    try:
        batch.run()
    finally:
        batch.close()
    _summary.show(batch.rows, sweep_dir)
    if batch.interrupted:
        raise Interrupted(_summary.interruption(batch.rows, sweep_dir))
    return [result for result in batch.results if result is not None]


class Batch:
    """The jobs of one call of ``launch``, and where each stands."""

    def __init__(self, launcher: LocalLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> None:
        assert launcher.hydra_context is not None
        assert launcher.task_function is not None
        self.rows = [Row(first + i, tuple(filter_overrides(texts))) for i, texts in enumerate(job_overrides)]
        self.results: list[JobReturn | None] = [None] * len(job_overrides)
        self.interrupted = False
        assert launcher.config is not None
        self._launcher, self._config, self._context = launcher, launcher.config, launcher.hydra_context
        self._first = first
        self._overrides = [list(texts) for texts in job_overrides]
        self._shared = _job.pack_shared(launcher.task_function, launcher.hydra_context)
        self._next = 0
        self._running: list[JobProcess] = []
        self._failure: int | None = None  # the first job that failed, in time
        self._signals: list[tuple[float, int]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        # The jobs hold the reading end; when the launcher dies, however it dies, the other one closes.
        self._lifeline, self._life = os.pipe()

    def run(self) -> None:
        """Run all jobs, or as many as errors and signals leave."""
        with self._listening():
            while True:
                while self._may_start():
                    self._start()
                if not self._running:
                    break
                self._wait()
                self._heed_signals()
                for process in [p for p in self._running if p.status is not None]:
                    self._finish(process)
        for i in range(self._next, len(self.results)):
            self._not_started(i)

    def close(self) -> None:
        """Kill what still runs, which is so after a fault of the launcher only, and let go of all descriptors."""
        for process in self._running:
            process.kill("fault")
            process.close()
        self._selector.close()
        for descriptor in (self._wake_read, self._wake_write, self._lifeline, self._life):
            os.close(descriptor)

    def _may_start(self) -> bool:
        stopped = self._failure is not None and self._launcher.on_error is OnError["fail_fast"]
        room = len(self._running) < self._launcher.max_parallel
        return self._next < len(self.results) and room and not stopped and not self.interrupted and not self._signals

    def _start(self) -> None:
        i, launcher = self._next, self._launcher
        self._next += 1
        job: Job | None = None
        say(f"mlperf_exp: job {self.rows[i].number} ({i + 1} of {len(self.rows)}): {self.rows[i].text}\n")
        try:
            job = _job.compose(self._config, self._context, self._overrides[i], self.rows[i].number, launcher.env)
            self.rows[i].begin(job.folder)
            job.answer.unlink(missing_ok=True)
            _job.write_request(job, self._shared, launcher.grace_s)
            output = Output.terminal if launcher.max_parallel == 1 else Output.lines
            process = JobProcess(
                job,
                output if launcher.stream_logs else Output.log,
                launcher.env,
                self._lifeline,
                launcher.grace_s,
                launcher.timeout_s,
                self._wake,
            )
        except (HydraException, OmegaConfBaseException, ExperimentError, OSError) as error:
            reason = (
                error if isinstance(error, ExperimentError) else RunFailed(f"the job cannot start: {explain(error)}")
            )
            self._settle(i, _job.failed(job, reason) if job else _job.not_composed(self._overrides[i], reason))
            return
        self._running.append(process)
        for pipe in process.pipes:
            self._selector.register(pipe.pipe, selectors.EVENT_READ, pipe)

    def _wait(self) -> None:
        due = [process.deadline for process in self._running if process.deadline is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            elif key.data.read() == 0:
                self._selector.unregister(key.fileobj)
        for process in self._running:
            if process.status is None:
                process.advance(time.monotonic())

    def _finish(self, process: JobProcess) -> None:
        self._running.remove(process)
        for pipe in process.pipes:
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe.pipe)
        process.close()
        job = process.job
        result = _job.read_answer(job)
        last = _job.tail(job) if result is None else []
        if process.stopped_for == "timeout" and (result is None or _job.error_of(result) is not None):
            limit = f"took longer than hydra.launcher.timeout_s={self._launcher.timeout_s:g} s and was ended"
            result = _job.failed(job, RunFailed(f"job {job.number} {limit}; what it had finished is in {job.folder}"))
        elif result is None and process.stopped_for is not None:
            result = _job.failed(job, Interrupted(f"job {job.number} was interrupted and left no result"))
        elif result is None:
            result = _job.failed(job, JobLost(job.number, job.overrides, process.how(), last))
        for path in (job.request, job.answer):
            path.unlink(missing_ok=True)
        self.rows[job.number - self._first].end(time.monotonic() - process.started_s)
        self._settle(job.number - self._first, result)

    def _settle(self, i: int, result: JobReturn) -> None:
        self.results[i] = result
        error = _job.error_of(result)
        self.rows[i].settle(error)
        if error is None:
            return
        if self._failure is None:
            self._failure = i
        text = str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
        say(f"mlperf_exp: job {self.rows[i].number} {self.rows[i].status}: {' '.join(text.split())}\n")
        if isinstance(error, JobLost):
            say("".join(f"    {line}\n" for line in error.tail))

    def _not_started(self, i: int) -> None:
        number = self.rows[i].number
        why = "the sweep was interrupted"
        if not self.interrupted and self._failure is not None:
            why = f"job {self.rows[self._failure].number} had failed, and hydra.launcher.on_error=fail_fast"
        error = Interrupted if self.interrupted else RunFailed
        self.results[i] = _job.not_composed(self._overrides[i], error(f"job {number} was not started: {why}"))
        self.rows[i].status = "not started"

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._wake_write, b"\0")

    def _heed_signals(self) -> None:
        while self._signals:
            now, number = self._signals.pop(0)
            if not self.interrupted:
                self.interrupted, self._interrupted_at = True, now
                for process in self._running:
                    process.stop("interrupt", now)
                    process.advance(now)
                self._explain_interrupt(number)
            elif number == signal.SIGINT and now - self._interrupted_at > _SAME_KEY_S:
                for process in self._running:
                    process.kill("interrupt")

    def _explain_interrupt(self, number: int) -> None:
        names = ", ".join(str(process.job.number) for process in self._running)
        how = f"at most {self._launcher.grace_s:g} s; Ctrl-C again kills"
        waits = f"; waiting until job {names} has kept what it has ({how})" if names else ""
        say(f"\nmlperf_exp: {signal.Signals(number).name}{waits}\n")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def note(number: int, _: Any) -> None:
            self._signals.append((time.monotonic(), number))
            self._wake()

        try:
            with signals.handled(note):
                yield
        finally:
            self._heed_signals()
