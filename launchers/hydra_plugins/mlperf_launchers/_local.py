"""The core of the launcher ``local``: a batch of jobs in processes of their own, at most so many at once.

Jobs that can share an engine follow one another in one process. One that crashes fails alone: those that are left of
its group go on in a fresh process, with an engine of their own.

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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra_plugins.mlperf_launchers import _job, _summary
from hydra_plugins.mlperf_launchers._chosen import refuse_launchers
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._job import Job, JobLost
from hydra_plugins.mlperf_launchers._process import Output, Worker, say
from hydra_plugins.mlperf_launchers._summary import Row
from hydra_plugins.mlperf_launchers._sweep import Sweep
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp import signals
from mlperf_exp.cli import explain
from mlperf_exp.errors import ExperimentError, Interrupted, RunFailed, UserError
from mlperf_exp.sweep.identity import Identity, identify

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers.local import LocalLauncher

_LATE_S = 10.0  # a job that is ended by force takes so much longer than its grace
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
    if launcher.retries < 0:
        raise UserError("hydra.launcher.retries", f"{launcher.retries} times", "Give 0 or more")
    if not launcher.grace_s >= 0:
        raise UserError("hydra.launcher.grace_s", f"{launcher.grace_s:g} s", "Give 0 or more")
    for name, value in launcher.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise UserError("hydra.launcher.env", f"{name!r} cannot be an environment variable", "Name it otherwise")


def launch(launcher: LocalLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """Run the jobs, show the summary, return the results in order.

    Raises:
        UserError: before anything was started: another sweep writes to the folder, or a job chooses a launcher.
        Interrupted: by a signal, after all that ran has ended.
    """
    assert launcher.config is not None
    setup_globals()
    assert launcher.hydra_context is not None
    refuse_launchers(launcher.config, launcher.hydra_context, job_overrides)
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    sweep_dir = Path(str(launcher.config.hydra.sweep.dir))
    if launcher.sweep is None:
        launcher.sweep = Sweep(
            sweep_dir, launcher.config, launcher.max_parallel, launcher.retries, launcher.grace_s + _LATE_S
        )
    batch = Batch(launcher, launcher.sweep, job_overrides, first)
    try:
        batch.run()
    finally:
        batch.close()
    if launcher.open_for is None:
        _summary.show(batch.rows, sweep_dir)
    if batch.interrupted:
        raise Interrupted(_summary.interruption(batch.rows, sweep_dir))
    return [result for result in batch.results if result is not None]


def finish(launcher: LocalLauncher) -> None:
    """Close a sweep that was kept open, and stop its last engine."""
    launcher.open_for = None
    if launcher.sweep is not None:
        batch = Batch(launcher, launcher.sweep, [], len(launcher.sweep.record.jobs))
        try:
            batch.run()
        finally:
            batch.close()


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
        self._launcher, self._sweep, self._config, self._context = (
            launcher,
            sweep,
            launcher.config,
            launcher.hydra_context,
        )
        self._first = first
        self._overrides = [list(texts) for texts in job_overrides]
        self._shared = _job.pack_shared(launcher.task_function, launcher.hydra_context)
        self._jobs: list[Job | None] = []
        self._refused: dict[int, Exception] = {}
        self._compose()
        self._running: list[Worker] = []
        self._failure: int | None = None  # the first job that failed, in time
        self._signals: list[tuple[float, int]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._lifeline = sweep.lifeline()

    def _compose(self) -> None:
        """All jobs, before any is started; and their order, in which those that can share an engine follow another."""
        identities = []
        for i, texts in enumerate(self._overrides):
            job: Job | None = None
            identity = Identity()
            try:
                job = _job.prepare(self._config, self._context, texts, self.rows[i].number, self._launcher.env)
                identity = identify(job.config)
            except (HydraException, OmegaConfBaseException) as error:
                self._refused[i] = error
            self._jobs.append(replace(job, group=identity.group) if job is not None else None)
            identities.append(identity)
        self._entries = self._sweep.add(self.rows, identities, self._launcher.open_for)
        groups = [job.group if job is not None else None for job in self._jobs]
        place = {group: i for i, group in reversed(list(enumerate(groups))) if group is not None}
        self._waiting = sorted(range(len(groups)), key=lambda i: (place.get(groups[i] or "", i), i))

    def run(self) -> None:
        """Run all jobs, or as many as errors and signals leave."""
        with self._listening():
            self._take_earlier()
            if self._waiting:
                self._sweep.track(self._jobs)
            self._go_on()
            while True:
                while self._may_start() and len(self._running) < self._launcher.max_parallel:
                    self._start(self._choose(None))
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
        self._selector.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)
        if self._sweep.kept is None:
            self._sweep.cut_lifeline()

    def _go_on(self) -> None:
        """With the process that an earlier batch left: for a job that can use its engine, else to its end."""
        worker, self._sweep.kept = self._sweep.kept, None
        if worker is None:
            return
        worker.ended = self._wake
        self._watch(worker)
        if worker.status is not None:  # it died meanwhile
            self._wake()
            return
        fitting = [i for i in self._waiting if self._group(i) == worker.group]
        if fitting and self._may_start():
            self._start(fitting[0], worker)
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

    def _choose(self, group: str | None) -> int:
        """The next job: of this group, else of one that no worker runs, else the first."""
        busy = {worker.group for worker in self._running}
        for i in self._waiting:
            own = self._group(i)
            if own == group if group is not None else own is None or own not in busy:
                return i
        return self._waiting[0]

    def _group(self, i: int) -> str | None:
        job = self._jobs[i]
        return job.group if job is not None and self._launcher.reuse_engine else None

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
                raise self._refused[i]
            job = self._sweep.place(job, self._entries[i])
            _job.make_folder(job)
            self.rows[i].begin(job.folder)
            job.answer.unlink(missing_ok=True)
            another = self._group(i) is not None and (
                launcher.open_for is not None or any(self._group(j) == self._group(i) for j in self._waiting)
            )
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
                    job, output, launcher.env | self._sweep.env, held, launcher.grace_s, launcher.timeout_s, self._wake
                )
                self._watch(worker)
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

    def _watch(self, worker: Worker) -> None:
        self._running.append(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        for pipe in worker.pipes:
            self._selector.register(pipe.pipe, selectors.EVENT_READ, pipe)

    def _unwatch(self, worker: Worker) -> None:
        self._running.remove(worker)
        streams: list[Any] = [worker.channel, *(pipe.pipe for pipe in worker.pipes)]
        for stream in streams:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(stream)

    def _wait(self) -> None:
        due = [worker.deadline for worker in self._running if worker.deadline is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            elif isinstance(key.data, Worker):
                self._hear(key.data)
            elif key.data.read() == 0:
                self._selector.unregister(key.fileobj)
        for worker in self._running:
            if worker.status is None:
                worker.advance(time.monotonic())

    def _hear(self, worker: Worker) -> None:
        """After a job, and at the end of its process, which tells the rest."""
        if worker.heard() != "more":
            self._selector.unregister(worker.channel)
            return
        self._heed_signals()
        self._finish(worker)
        waiting = [i for i in self._waiting if self._group(i) == worker.group]
        if waiting and self._may_start() and worker.stopped_for is None:
            self._start(waiting[0], worker)
        elif self._keepable(worker):
            self._unwatch(worker)
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
        self._unwatch(worker)
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

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._wake_write, b"\0")

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
            self._wake()

        try:
            with signals.handled(note):
                yield
        finally:
            self._heed_signals()
