"""A batch of jobs of the launcher ``local``, in processes of their own, at most so many at once.

Jobs that can share an engine follow one another in one process. One that crashes fails alone: those that are left of
its group go on in a fresh process, with an engine of their own.

The launcher sleeps in one ``select`` until a job ends, prints, runs out of time, or a signal arrives: it takes nothing
from what the jobs measure. The first SIGINT, SIGTERM or SIGHUP interrupts every running job, which then keeps what it
has; a further SIGINT kills them.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, filter_overrides
from hydra.errors import HydraException
from hydra_plugins.mlperf_launchers import _job
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._job import JobLost
from hydra_plugins.mlperf_launchers._process import Output, Worker, say
from hydra_plugins.mlperf_launchers._queue import Queue
from hydra_plugins.mlperf_launchers._summary import Row
from hydra_plugins.mlperf_launchers._sweep import Sweep
from hydra_plugins.mlperf_launchers._watch import Watch
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp import signals
from mlperf_exp.cli import explain
from mlperf_exp.errors import ExperimentError, Interrupted, RunFailed

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers.local import LocalLauncher

_SAME_KEY_S = 0.5  # two SIGINTs closer than this are one key press that arrived by two ways


class Batch:
    """The jobs of one call of ``launch``, and where each stands."""

    def __init__(
        self, launcher: LocalLauncher, sweep: Sweep, job_overrides: Sequence[Sequence[str]], first: int
    ) -> None:
        assert launcher.hydra_context is not None
        assert launcher.task_function is not None
        self.rows = [Row(first + i, tuple(filter_overrides(texts))) for i, texts in enumerate(job_overrides)]
        self.results: list[JobReturn | None] = [None] * len(job_overrides)
        self.interrupted = False
        assert launcher.config is not None
        self._launcher, self._sweep, self._first = launcher, sweep, first
        self._overrides = [list(texts) for texts in job_overrides]
        self._shared = _job.pack_shared(launcher.task_function, launcher.hydra_context)
        self._queue = Queue(
            launcher.config, launcher.hydra_context, self._overrides, first, launcher.env, launcher.reuse_engine
        )
        self._jobs = self._queue.jobs
        self._waiting = self._queue.waiting
        self._entries = sweep.add(self.rows, self._queue.identities, launcher.open_for)
        self._running: list[Worker] = []
        self._failure: int | None = None  # the first job that failed, in time
        self._signals: list[tuple[float, int]] = []
        self._watch = Watch()
        self._lifeline = sweep.lifeline()

    def run(self) -> None:
        """Run all jobs, or as many as errors and signals leave."""
        with self._listening():
            self._take_earlier()
            if self._waiting:
                self._sweep.track(self._jobs)
            self._go_on()
            while True:
                while self._may_start() and len(self._running) < self._launcher.max_parallel:
                    self._start(self._queue.next({worker.group for worker in self._running}))
                if not self._running:
                    break
                self._wait()
                self._heed_signals()
                for worker in [w for w in self._running if w.status is not None]:
                    self._close(worker)
        for i in self._waiting:
            self._not_started(i)
        if self._launcher.open_for is None or self.interrupted:
            self._sweep.end(self.interrupted)
        else:
            self._sweep.save()

    def close(self) -> None:
        """Kill what still runs, which is so after a fault of the launcher only, and let go of all descriptors."""
        for worker in self._running:
            worker.kill("fault")
            worker.close()
        self._watch.close()
        if self._sweep.kept is None:
            self._sweep.cut_lifeline()

    def _go_on(self) -> None:
        """With the process that an earlier batch left: for a job that can use its engine, else to its end."""
        worker, self._sweep.kept = self._sweep.kept, None
        if worker is None:
            return
        worker.ended = self._watch.wake
        self._add(worker)
        if worker.status is not None:  # it died meanwhile
            self._watch.wake()
            return
        fitting = self._queue.fitting(worker.group)
        if fitting is not None and self._may_start():
            self._start(fitting, worker)
        else:
            worker.dismiss()

    def _take_earlier(self) -> None:
        """Jobs that an earlier start of the sweep finished, or failed too often."""
        for i in list(self._waiting):
            job, entry = self._jobs[i], self._entries[i]
            if job is None:
                continue
            done = self._sweep.finished_before(job, entry)
            if done is not None:
                self._waiting.remove(i)
                self.rows[i].found(self._sweep.record.folder / str(entry.folder))
                self.results[i] = done
                self.rows[i].settle(_job.error_of(done))
                continue
            why = self._sweep.given_up(entry)
            if why is not None:
                self._waiting.remove(i)
                self._settle(i, _job.failed(job, RunFailed(f"job {job.number} is not tried again: {why}")))
        self._sweep.save()
        self._sweep.announce()

    def _may_start(self) -> bool:
        return bool(self._waiting) and self._may_start_more()

    def _may_start_more(self) -> bool:
        stopped = self._failure is not None and self._launcher.on_error is OnError["fail_fast"]
        return not stopped and not self.interrupted and not self._signals

    def _start(self, i: int, worker: Worker | None = None) -> None:
        """Start a job, in a process of its own or in that of ``worker``."""
        launcher = self._launcher
        self._waiting.remove(i)
        again = f", attempt {self._entries[i].attempt}" if self._entries[i].attempt > 1 else ""
        count = len(self.rows) - len(self._waiting)
        say(f"mlperf_exp: job {self.rows[i].number} ({count} of {len(self.rows)}{again}): {self.rows[i].text}\n")
        job = self._jobs[i]
        try:
            if job is None:
                raise self._queue.refused[i]
            job = self._sweep.place(job, self._entries[i])
            _job.make_folder(job)
            self.rows[i].begin(job.folder)
            job.answer.unlink(missing_ok=True)
            more = launcher.open_for is not None or self._queue.fitting(self._queue.group(i)) is not None
            another = self._queue.group(i) is not None and more
            output = (
                (Output.terminal if launcher.max_parallel == 1 else Output.lines)
                if launcher.stream_logs
                else Output.log
            )
            log = job.log if output is Output.log else None
            _job.write_request(job, self._shared, launcher.grace_s, log, another)
            if worker is None:
                held = (self._lifeline, self._sweep.lock)
                worker = Worker(
                    job,
                    output,
                    launcher.env | self._sweep.env,
                    held,
                    launcher.grace_s,
                    launcher.timeout_s,
                    self._watch.wake,
                )
                self._add(worker)
        except (HydraException, OmegaConfBaseException, ExperimentError, OSError) as error:
            if worker is not None:
                worker.dismiss()
            reason = (
                error if isinstance(error, ExperimentError) else RunFailed(f"the job cannot start: {explain(error)}")
            )
            self._settle(i, _job.failed(job, reason) if job else _job.not_composed(self._overrides[i], reason))
            return
        self._sweep.started(self._entries[i], job.folder)
        worker.begin(job)

    def _add(self, worker: Worker) -> None:
        self._running.append(worker)
        self._watch.add(worker)

    def _remove(self, worker: Worker) -> None:
        self._running.remove(worker)
        self._watch.remove(worker)

    def _wait(self) -> None:
        due = [worker.deadline for worker in self._running if worker.deadline is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        self._watch.wait(timeout, self._hear)
        for worker in self._running:
            if worker.status is None:
                worker.advance(time.monotonic())

    def _hear(self, worker: Worker) -> None:
        """After a job, and at the end of its process, which tells the rest."""
        if worker.heard() != "more":
            self._watch.silence(worker)
            return
        self._heed_signals()
        self._finish(worker)
        fitting = self._queue.fitting(worker.group)
        if fitting is not None and self._may_start() and worker.stopped_for is None:
            self._start(fitting, worker)
        elif self._keepable(worker):
            self._remove(worker)
            worker.ended = lambda: None
            self._sweep.kept = worker
        else:
            worker.dismiss()

    def _keepable(self, worker: Worker) -> bool:
        """Whether a process stays for a later batch: the only one, when nothing else is left to start."""
        more = self._launcher.open_for is not None and self._may_start_more()
        return more and not self._waiting and self._running == [worker] and worker.stopped_for is None

    def _close(self, worker: Worker) -> None:
        """A process has ended; so has its job, if it had one."""
        self._remove(worker)
        worker.close()
        if worker.job is not None:
            self._finish(worker)

    def _finish(self, worker: Worker) -> None:
        job = worker.job
        assert job is not None
        worker.done()
        result = _job.read_answer(job)
        last = _job.tail(job) if result is None else []
        if worker.stopped_for == "timeout" and (result is None or _job.error_of(result) is not None):
            limit = f"took longer than hydra.launcher.timeout_s={self._launcher.timeout_s:g} s and was ended"
            result = _job.failed(job, RunFailed(f"job {job.number} {limit}; what it had finished is in {job.folder}"))
        elif result is None and worker.stopped_for is not None:
            result = _job.failed(job, Interrupted(f"job {job.number} was interrupted and left no result"))
        elif result is None:
            result = _job.failed(job, JobLost(job.number, job.overrides, worker.how(), last))
        for path in (job.request, job.answer):
            path.unlink(missing_ok=True)
        self.rows[job.number - self._first].end(time.monotonic() - worker.started_s)
        self._settle(job.number - self._first, result)

    def _settle(self, i: int, result: JobReturn) -> None:
        self.results[i] = result
        error = _job.error_of(result)
        self.rows[i].settle(error)
        self._sweep.ended(self._entries[i], self.rows[i], None if error is None else str(error))
        if error is None:
            self._report()
            return
        if self._failure is None:
            self._failure = i
        text = str(error) if isinstance(error, ExperimentError) else f"{type(error).__name__}: {error}"
        say(f"mlperf_exp: job {self.rows[i].number} {self.rows[i].status}: {' '.join(text.split())}\n")
        if isinstance(error, JobLost):
            say("".join(f"    {line}\n" for line in error.tail))
        self._report()

    def _report(self) -> None:
        """Where the sweep stands, while there is something left."""
        if self._waiting and not self.interrupted:
            say(f"mlperf_exp: {self._sweep.state()}\n")

    def _not_started(self, i: int) -> None:
        number = self.rows[i].number
        why = "the sweep was interrupted"
        if not self.interrupted and self._failure is not None:
            why = f"job {self.rows[self._failure].number} had failed, and hydra.launcher.on_error=fail_fast"
        error = Interrupted if self.interrupted else RunFailed
        self.results[i] = _job.not_composed(self._overrides[i], error(f"job {number} was not started: {why}"))
        self.rows[i].status = "not started"
        self._sweep.ended(self._entries[i], self.rows[i], None)

    def _heed_signals(self) -> None:
        while self._signals:
            now, number = self._signals.pop(0)
            if not self.interrupted:
                self.interrupted, self._interrupted_at = True, now
                for worker in self._running:
                    worker.stop("interrupt", now)
                    worker.advance(now)
                self._explain_interrupt(number)
            elif number == signal.SIGINT and now - self._interrupted_at > _SAME_KEY_S:
                for worker in self._running:
                    worker.kill("interrupt")

    def _explain_interrupt(self, number: int) -> None:
        names = ", ".join(str(worker.job.number) for worker in self._running if worker.job is not None)
        how = f"at most {self._launcher.grace_s:g} s; Ctrl-C again kills"
        waits = f"; waiting until job {names} has kept what it has ({how})" if names else ""
        say(f"\nmlperf_exp: {signal.Signals(number).name}{waits}\n")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def note(number: int, _: Any) -> None:
            self._signals.append((time.monotonic(), number))
            self._watch.wake()

        try:
            with signals.handled(note):
                yield
        finally:
            self._heed_signals()
