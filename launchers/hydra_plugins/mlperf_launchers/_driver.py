"""Drives the jobs of a sweep on other machines: submits, watches, retries, ends, fetches, cleans up.

One loop looks at everything a few times a second and never waits for anything: what a system may take long for runs in
threads. So a signal is heeded at once, and one job that hangs holds up no other.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hydra_plugins.mlperf_launchers._cluster import Cluster, LaunchError, State, Unreachable
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._handback import Receiver
from hydra_plugins.mlperf_launchers._job import describe
from hydra_plugins.mlperf_launchers._ledger import Entry, Ledger, Try, now
from hydra_plugins.mlperf_launchers._log import JobLog
from hydra_plugins.mlperf_launchers._process import say
from hydra_plugins.mlperf_launchers._remote_config import Fault, RemoteLauncherConf
from hydra_plugins.mlperf_launchers._track import CANCEL_S, Stop, Track

from mlperf_exp import signals
from mlperf_exp.errors import ExperimentError, Interrupted, InvalidResult, RunFailed, UserError

_TICK_S = 0.1
_SAME_KEY_S = 0.5  # two SIGINTs closer than this are one key press that arrived by two ways
_BACKOFF_S = (1.0, 5.0, 15.0, 30.0)


@dataclass(slots=True)
class Outcome:
    """What came of a job. ``folder`` is that of its last attempt; None where it was never started."""

    number: int
    error: ExperimentError | None
    folder: Path | None = None
    seconds: float | None = None


class Driver:
    """The jobs of one sweep.

    Args:
        cluster: the system.
        settings: the launcher's keys.
        ledger: the jobs, with the attempts that there are already when another process takes over.
        on_end: called for each job when it is over.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: RemoteLauncherConf,
        ledger: Ledger,
        on_end: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self.interrupted = False
        self.outcomes: dict[int, Outcome] = {}
        self._cluster, self._settings, self._ledger, self._on_end = cluster, settings, ledger, on_end
        self._entries = {entry.spec.number: entry for entry in ledger.entries}
        self._waiting = [(0.0, entry) for entry in ledger.entries]  # and when it may be submitted
        self._submitting: dict[int, tuple[Try, Future[str], float]] = {}
        self._tracks: dict[int, Track] = {}
        self._cancels: dict[str, Future[None]] = {}
        self._began: dict[int, float] = {}
        self._failure: int | None = None  # the first job that failed, in time
        self._signals: list[tuple[float, int]] = []
        self._woken = threading.Event()
        self._asked: Future[Mapping[str, State]] | None = None
        self._ask_at = 0.0
        self._silent_since: float | None = None
        self._give_up = False
        self._saved: object = None
        self._pool = ThreadPoolExecutor(min(32, settings.max_parallel) + 4, "cluster")
        self._submitter = ThreadPoolExecutor(max(1, cluster.submits_at_once), "submit")

    def run(self) -> list[Outcome]:
        """Run all jobs, or as many as errors and signals leave; their outcomes in the jobs' order."""
        with signals.handled(self._note):
            try:
                self._take_over()
                while self._waiting or self._submitting or self._tracks:
                    self._step()
                    self._woken.wait(_TICK_S)
                    self._woken.clear()
            finally:
                self._close()
        return [self.outcomes[number] for number in sorted(self.outcomes)]

    def _step(self) -> None:
        moment = time.monotonic()
        self._heed(moment)
        self._submit(moment)
        self._submitted(moment)
        self._ask(moment)
        for number, track in list(self._tracks.items()):
            self._follow(number, track, moment)
        self._save()

    # -- submitting ----------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Follow the attempts that an earlier process has left, and settle the jobs that are over."""
        for entry in list(self._entries.values()):
            if entry.status == "waiting":
                continue
            self._waiting = [(at, other) for at, other in self._waiting if other is not entry]
            last = entry.tries[-1] if entry.tries else None
            if entry.status != "submitted" or last is None:
                self.outcomes[entry.spec.number] = _recorded(entry)
            elif last.attempt.id is None:
                self._submitting[entry.spec.number] = (last, self._submitter.submit(self._find, last), time.monotonic())
            else:
                self._track(entry.spec.number, last)

    def _submit(self, moment: float) -> None:
        if self._stopped():
            for _, entry in self._waiting:
                self._not_started(entry)
            self._waiting = []
        room = self._settings.max_parallel - len(self._submitting) - len(self._tracks)
        due = [entry for at, entry in self._waiting if at <= moment][: max(0, room)]
        if not due:
            return
        self._waiting = [(at, entry) for at, entry in self._waiting if entry not in due]
        notes = [(entry, self._ledger.attempt(entry)) for entry in due]
        for entry in due:
            entry.status = "submitted"
            self._began.setdefault(entry.spec.number, moment)
        problem = self._save()  # before the system can know any of them
        for entry, note in notes:
            try:
                note.attempt.folder.mkdir(parents=True, exist_ok=True)
                if problem is not None:
                    raise problem
            except OSError as error:
                self._settle(entry, note, RunFailed(f"{error.filename}: {error.strerror}"))
                continue
            future = self._submitter.submit(self._cluster.submit, note.attempt)
            future.add_done_callback(lambda _: self._woken.set())
            self._submitting[entry.spec.number] = (note, future, moment)

    def _find(self, note: Try) -> str:
        found = self._cluster.find(note.attempt)
        if found is None:
            raise LaunchError("its submission was not confirmed, and the system does not know it")
        return found

    def _submitted(self, moment: float) -> None:
        for number, (note, future, since) in list(self._submitting.items()):
            if not future.done():
                continue
            del self._submitting[number]
            entry = self._entries[number]
            try:
                note.attempt = note.attempt.submitted(future.result())
            except Unreachable as error:
                if moment - since < self._settings.unknown_grace_s and not self._give_up:
                    again = self._submitter.submit(self._resubmit, note)
                    self._submitting[number] = (note, again, since)
                else:
                    self._failed(entry, note, RunFailed(f"job {number}: {error}"), Fault.launch_error)
            except UserError as error:
                self._settle(entry, note, error)
            except Exception as error:
                text = f"job {note.attempt.name} could not be submitted: {_one_line(error)}"
                self._failed(entry, note, RunFailed(text), Fault.launch_error)
            else:
                say(f"mlperf_exp: job {note.attempt.name} is {note.attempt.id}: {describe(entry.spec.overrides)}\n")
                self._track(number, note)

    def _resubmit(self, note: Try) -> str:
        """After the system did not answer: first look whether it has taken the attempt all the same."""
        time.sleep(2.0)
        return self._cluster.find(note.attempt) or self._cluster.submit(note.attempt)

    def _track(self, number: int, note: Try) -> None:
        folder = note.attempt.folder
        receiver = Receiver(note.attempt.uid, folder)
        keeps = None if self._cluster.shared_files else folder
        log = JobLog(note.attempt.name, keeps, self._settings.stream_logs, receiver)
        note.submitted_at = note.submitted_at or now()
        note.state = "queued"
        self._tracks[number] = Track(note, log, self._cluster.shared_files)
        self._ask_at = 0.0

    # -- watching ------------------------------------------------------------------------------------------------------

    def _ask(self, moment: float) -> None:
        if self._asked is not None and self._asked.done():
            self._answered(self._asked, moment)
            self._asked, self._ask_at = None, moment + self._cluster.poll_s
        asked_for = [track.attempt for track in self._tracks.values() if track.closing is None]
        if self._asked is None and asked_for and moment >= self._ask_at:
            self._asked = self._pool.submit(self._cluster.states, asked_for)
            self._asked.add_done_callback(lambda _: self._woken.set())

    def _answered(self, asked: Future[Mapping[str, State]], moment: float) -> None:
        try:
            states = asked.result()
        except Exception as error:  # whatever a client library raises: no answer is no answer
            if self._silent_since is None:
                self._silent_since = moment
                say(f"mlperf_exp: no answer about the jobs' states, asking again: {_one_line(error)}\n")
            return
        if self._silent_since is not None:
            say(f"mlperf_exp: answers again, after {moment - self._silent_since:.0f} s\n")
            self._silent_since = None
        for track in self._tracks.values():
            track.heard(states.get(str(track.attempt.id)), moment)

    def _follow(self, number: int, track: Track, moment: float) -> None:
        if track.closing is not None:
            if track.closing.done():
                self._over(number, track)
            return
        was = track.running_s
        if track.advance(self._settings, moment) or self._give_up:
            track.closing = self._pool.submit(self._close_attempt, track)
            track.closing.add_done_callback(lambda _: self._woken.set())
            return
        if was is None and track.running_s is not None:
            where = ", ".join(track.note.nodes) or "its node"
            say(f"mlperf_exp: job {track.attempt.name} runs on {where}\n")
        if track.running_s is not None:
            with contextlib.suppress(Exception):  # a log is a service; the last call tells what is wrong
                self._cluster.logs(track.attempt, track.log, False)
        if track.stop is not None and str(track.attempt.id) not in self._cancels:
            self._cancels[str(track.attempt.id)] = self._pool.submit(self._cancel, track)

    def _cancel(self, track: Track) -> None:
        until = time.monotonic() + CANCEL_S
        while time.monotonic() < until and not self._give_up:
            try:
                self._cluster.cancel(track.attempt)
            except Unreachable:
                time.sleep(1.0)
            else:
                return

    def _close_attempt(self, track: Track) -> None:
        """Bring home what the attempt left, then remove it from the system."""
        problems = []
        if not self._give_up:
            steps: list[Callable[[], None]] = [
                lambda: self._cluster.logs(track.attempt, track.log, True),
                lambda: self._cluster.fetch(track.attempt),
            ]
            for step in steps:
                problems += _patiently(step)
        track.log.close()
        if track.log.problem():
            problems.append(str(track.log.problem()))
        track.problem = "; ".join(problems) or None
        if not self._settings.keep and not track.uncancelled and not self._give_up:
            for problem in _patiently(lambda: self._cluster.remove(track.attempt)):
                say(f"mlperf_exp: job {track.attempt.name}: {track.attempt.id} could not be removed: {problem}\n")

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _over(self, number: int, track: Track) -> None:
        del self._tracks[number]
        entry = self._entries[number]
        error, fault = track.outcome(self._settings)
        note = track.note
        note.ended_at = now()
        note.state = "finished" if error is None or isinstance(error, InvalidResult) else track.state.kind.name
        note.reason = str(error or "")
        if track.uncancelled or (self._give_up and not track.state.kind.ended):
            say(
                f"mlperf_exp: job {track.attempt.name}: {track.attempt.id} did not end and may still run. "
                f"Cancel it: python -m mlperf_exp.jobs cancel {self._ledger.folder}\n"
            )
            note.state = "not cancelled"
        if track.problem:
            say(f"mlperf_exp: job {track.attempt.name}: {track.problem}\n")
        if error is not None and not isinstance(error, InvalidResult | Interrupted):
            tail = track.status().get("tail") or track.log.tail()
            say("".join(f"    {line}\n" for line in tail[-40:]))
        self._failed(entry, note, error, fault)

    def _failed(self, entry: Entry, note: Try, error: ExperimentError | None, fault: Fault | None) -> None:
        retries = self._settings.retries
        if fault in retries.on and len(entry.tries) <= retries.max and not self._stopped():
            pause = _BACKOFF_S[min(len(entry.tries), len(_BACKOFF_S)) - 1]
            say(f"mlperf_exp: {error}; attempt {len(entry.tries) + 1} of {retries.max + 1} in {pause:g} s\n")
            note.reason = str(error)
            entry.status = "waiting"
            self._waiting.append((time.monotonic() + pause, entry))
            self._waiting.sort(key=lambda item: item[1].spec.number)
            return
        self._settle(entry, note, error)

    def _settle(self, entry: Entry, note: Try, error: ExperimentError | None) -> None:
        number = entry.spec.number
        if error is not None and not isinstance(error, InvalidResult):
            note.reason = str(error)
            kind = "interrupted" if isinstance(error, Interrupted) else "failed"
            entry.status = kind
            if kind == "failed" and self._failure is None:
                self._failure = number
            say(f"mlperf_exp: {_one_line(error)}\n")
        else:
            entry.status = "finished"
            say(f"mlperf_exp: job {note.attempt.name} finished\n")
        seconds = time.monotonic() - self._began[number] if number in self._began else None
        self.outcomes[number] = Outcome(number, error, note.attempt.folder, seconds)
        self._on_end(self.outcomes[number])

    def _not_started(self, entry: Entry) -> None:
        number = entry.spec.number
        if entry.tries:  # it would have been tried again
            self._settle(entry, entry.tries[-1], RunFailed(entry.tries[-1].reason))
            return
        error: ExperimentError = Interrupted(f"job {number} was not started: the sweep was interrupted")
        if not self.interrupted:
            why = f"job {self._failure} had failed, and hydra.launcher.on_error=fail_fast"
            error = RunFailed(f"job {number} was not started: {why}")
        entry.status = "not started"
        self.outcomes[number] = Outcome(number, error)
        self._on_end(self.outcomes[number])

    def _stopped(self) -> bool:
        fast = self._failure is not None and self._settings.on_error is OnError["fail_fast"]
        return self.interrupted or fast

    # -- signals, and the end ------------------------------------------------------------------------------------------

    def interrupt(self, why: str) -> None:
        """Cancel every job, submit no more."""
        if self.interrupted:
            return
        self.interrupted, self._interrupted_at = True, time.monotonic()
        count = len(self._tracks) + len(self._submitting)
        say(f"\nmlperf_exp: {why}: cancelling {count} jobs and waiting for their end\n")

    def _note(self, number: int, _: object) -> None:
        self._signals.append((time.monotonic(), number))
        self._woken.set()

    def _heed(self, moment: float) -> None:
        while self._signals:
            at, number = self._signals.pop(0)
            if not self.interrupted:
                self.interrupt(signal.Signals(number).name)
            elif number == signal.SIGINT and at - self._interrupted_at > _SAME_KEY_S:
                self._give_up = True
        if not self.interrupted and self._ledger.cancel_wanted():
            self.interrupt("cancelled by python -m mlperf_exp.jobs cancel")
        if self.interrupted:
            for track in self._tracks.values():
                track.end(Stop.interrupt, moment)

    def _save(self) -> OSError | None:
        """Write ``jobs.json`` if it would tell something else; what went wrong."""
        state = [(entry.status, [_seen(note) for note in entry.tries]) for entry in self._entries.values()]
        if state != self._saved:
            self._saved = state
            try:
                self._ledger.save()
            except OSError as error:  # a full disk on this side: jobs that run go on
                return error
        return None

    def _close(self) -> None:
        self._submitter.shutdown(wait=not self._give_up, cancel_futures=True)
        self._pool.shutdown(wait=not self._give_up, cancel_futures=True)
        with contextlib.suppress(OSError):
            self._ledger.save()


def _recorded(entry: Entry) -> Outcome:
    """The outcome of a job that was over when another process had it."""
    number, last = entry.spec.number, entry.tries[-1] if entry.tries else None
    error: ExperimentError | None = None
    if entry.status != "finished" or (last and last.reason):
        kinds = {"finished": InvalidResult, "interrupted": Interrupted}
        error = kinds.get(entry.status, RunFailed)(last.reason if last else f"job {number} was not started")
    return Outcome(number, error, last.attempt.folder if last else None)


def _seen(note: Try) -> tuple[object, ...]:
    return (note.attempt.id, note.state, note.reason, note.nodes)


def _patiently(step: Callable[[], None]) -> list[str]:
    """Try what may fail for a moment a few times; what is wrong at last."""
    problem = ""
    for pause in (0.0, 1.0, 4.0):
        time.sleep(pause)
        try:
            step()
        except Exception as error:  # no job may be lost to a client library's surprise
            problem = _one_line(error)
        else:
            return []
    return [problem]


def _one_line(error: Exception) -> str:
    text = (
        str(error)
        if isinstance(error, ExperimentError | Unreachable | LaunchError)
        else f"{type(error).__name__}: {error}"
    )
    return " ".join(text.split())


def render_all(cluster: Cluster, entries: Sequence[Entry], ledger: Ledger) -> str:
    """What would be submitted, each job under a line that names it."""
    texts = []
    for entry in entries:
        attempt = ledger.attempt(entry).attempt
        texts.append(f"# job {attempt.name}: {describe(entry.spec.overrides)}\n{cluster.render(attempt).rstrip()}\n")
    return "\n".join(texts)
