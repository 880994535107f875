"""Drives the jobs of a sweep on other machines: submits, watches, retries, ends, fetches, cleans up.

One loop looks at everything a few times a second and never waits for anything: what a system may take long for runs in
threads. So a signal is heeded at once, and one job that hangs holds up no other. With many jobs it looks less often at
those of which there is no news: it may share its processor with them.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from hydra_plugins.mlperf_launchers._closing import Closing
from hydra_plugins.mlperf_launchers._cluster import Cluster, State
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._handback import Receiver
from hydra_plugins.mlperf_launchers._job import describe
from hydra_plugins.mlperf_launchers._ledger import Entry, Ledger, Try, now
from hydra_plugins.mlperf_launchers._log import JobLog
from hydra_plugins.mlperf_launchers._outcome import Outcome, one_line, recorded
from hydra_plugins.mlperf_launchers._process import say
from hydra_plugins.mlperf_launchers._remote_config import Fault, RemoteLauncherConf
from hydra_plugins.mlperf_launchers._submit import Submitter
from hydra_plugins.mlperf_launchers._track import Stop, Track

from mlperf_exp import signals
from mlperf_exp.errors import ExperimentError, Interrupted, InvalidResult, RunFailed, UserError

_TICK_S = 0.1
_LOOK_S, _SAVE_S = 0.005, 0.01  # a job: how much longer until all are looked at, or written down, again
_SAVE_MAX_S = 2.0
_SAME_KEY_S = 0.5  # two SIGINTs closer than this are one key press that arrived by two ways
_BACKOFF_S = (1.0, 5.0, 15.0, 30.0)


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
        self._tracks: dict[int, Track] = {}
        self._cancels: dict[str, Future[None]] = {}
        self._began: dict[int, float] = {}
        self._failure: int | None = None  # the first job that failed, in time
        self._signals: list[tuple[float, int]] = []
        self._woken = threading.Event()
        self._asked: Future[Mapping[str, State]] | None = None
        self._ask_at = self._look_at = self._save_at = 0.0
        self._silent_since: float | None = None
        self._give_up = False
        self._saved: object = None
        self._pool = ThreadPoolExecutor(min(32, settings.max_parallel) + 4, "cluster")
        self._submitter = Submitter(cluster, settings.unknown_grace_s, self._woken)
        self._closing = Closing(cluster, settings.keep, lambda: self._give_up)

    def run(self) -> list[Outcome]:
        """Run all jobs, or as many as errors and signals leave; their outcomes in the jobs' order."""
        with signals.handled(self._note):
            try:
                self._take_over()
                while self._waiting or self._submitter or self._tracks:
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
        look = moment >= self._look_at
        if look:
            self._look_at = moment + max(_TICK_S, _LOOK_S * len(self._tracks))
        for number, track in list(self._tracks.items()):
            if look or track.has_news():
                self._follow(number, track, moment)
        if moment >= self._save_at:  # what the system, or the jobs' own files, can tell again
            self._save_at = moment + min(_SAVE_MAX_S, _SAVE_S * len(self._entries))
            self._save()

    # -- submitting ----------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Follow the attempts that an earlier process has left, and settle the jobs that are over."""
        for entry in list(self._entries.values()):
            over = entry.tries[:-1] if entry.status == "submitted" else entry.tries
            if self._cluster.removes_later and not self._settings.keep:
                for note in over:  # the earlier process may have been killed before it came to that
                    self._cluster.remove(note.attempt)
            if entry.status == "waiting":
                continue
            self._waiting = [(at, other) for at, other in self._waiting if other is not entry]
            last = entry.tries[-1] if entry.tries else None
            if entry.status != "submitted" or last is None:
                self.outcomes[entry.spec.number] = recorded(entry)
            elif last.attempt.id is None:
                self._submitter.find(last, time.monotonic())
            else:
                self._track(entry.spec.number, last)

    def _submit(self, moment: float) -> None:
        if self._stopped():
            for _, entry in self._waiting:
                self._not_started(entry)
            self._waiting = []
        room = self._settings.max_parallel - len(self._submitter) - len(self._tracks)
        due = [entry for at, entry in self._waiting if at <= moment][: max(0, room)]
        if not due:
            return
        self._waiting = [(at, entry) for at, entry in self._waiting if entry not in due]
        notes = [(entry, self._ledger.attempt(entry)) for entry in due]
        for entry in due:
            entry.status = "submitted"
            self._began.setdefault(entry.spec.number, moment)
        problem = self._save(synced=True)  # before the system can know any of them
        for entry, note in notes:
            try:
                note.attempt.folder.mkdir(parents=True, exist_ok=True)
                if problem is not None:
                    raise problem
            except OSError as error:
                self._settle(entry, note, RunFailed(f"{error.filename}: {error.strerror}"))
                continue
            self._submitter.submit(note, moment)

    def _submitted(self, moment: float) -> None:
        for note, error in self._submitter.ended(moment, self._give_up):
            number = note.attempt.spec.number
            entry = self._entries[number]
            if error is None:
                say(f"mlperf_exp: job {note.attempt.name} is {note.attempt.id}: {describe(entry.spec.overrides)}\n")
                self._track(number, note)
            elif isinstance(error, UserError):
                self._settle(entry, note, error)
            else:
                text = f"job {note.attempt.name} could not be submitted: {one_line(error)}"
                self._failed(entry, note, RunFailed(text), Fault.launch_error)

    def _track(self, number: int, note: Try) -> None:
        folder = note.attempt.folder
        receiver = Receiver(note.attempt.uid, folder, self._woken.set)
        keeps = None if self._cluster.shared_files else folder
        log = JobLog(note.attempt.name, keeps, self._settings.stream_logs, receiver)
        told = self._cluster.told_by_log and note.attempt.spec.need.nodes == 1
        note.submitted_at = note.submitted_at or now()
        note.state = "queued"
        if not self._tracks:  # else they are asked for soon, and not once for each that is submitted
            self._ask_at = 0.0
        self._tracks[number] = Track(note, log, self._cluster.shared_files, told)

    # -- watching ------------------------------------------------------------------------------------------------------

    def _ask(self, moment: float) -> None:
        if self._asked is not None and self._asked.done():
            self._answered(self._asked, moment)
            self._asked, self._ask_at, self._look_at = None, moment + self._cluster.poll_s, 0.0
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
                say(f"mlperf_exp: no answer about the jobs' states, asking again: {one_line(error)}\n")
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
            track.closing = self._pool.submit(self._closing.close, track)
            track.closing.add_done_callback(lambda _: self._woken.set())
            return
        if was is None and track.running_s is not None:
            where = ", ".join(track.note.nodes) or "its node"
            say(f"mlperf_exp: job {track.attempt.name} runs on {where}\n")
        if track.running_s is not None:
            with contextlib.suppress(Exception):  # a log is a service; the last call tells what is wrong
                self._cluster.logs(track.attempt, track.log, False)
        if track.stop is not None and str(track.attempt.id) not in self._cancels:
            self._cancels[str(track.attempt.id)] = self._pool.submit(self._closing.cancel, track)

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
            say(f"mlperf_exp: {one_line(error)}\n")
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
        count = len(self._tracks) + len(self._submitter)
        say(f"\nmlperf_exp: {why}: cancelling {count} jobs and waiting for their end\n")

    def _note(self, number: int, _: object) -> None:
        # Without waking the loop, which looks every tick: it may hold the event's lock where the signal meets it.
        self._signals.append((time.monotonic(), number))

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

    def _save(self, synced: bool = False) -> OSError | None:
        """Write ``jobs.json`` if it would tell something else; what went wrong."""
        state = [(entry.status, [_seen(note) for note in entry.tries]) for entry in self._entries.values()]
        if state != self._saved:
            self._saved = state
            try:
                self._ledger.save(synced)
            except OSError as error:  # a full disk on this side: jobs that run go on
                return error
        return None

    def _close(self) -> None:
        self._submitter.close(wait=not self._give_up)
        self._pool.shutdown(wait=not self._give_up, cancel_futures=True)
        with contextlib.suppress(OSError):
            self._ledger.save()


def _seen(note: Try) -> tuple[object, ...]:
    return (note.attempt.id, note.state, note.reason, note.nodes)


def render_all(cluster: Cluster, entries: Sequence[Entry], ledger: Ledger) -> str:
    """What would be submitted, each job under a line that names it."""
    texts = []
    for entry in entries:
        attempt = ledger.attempt(entry).attempt
        texts.append(f"# job {attempt.name}: {describe(entry.spec.overrides)}\n{cluster.render(attempt).rstrip()}\n")
    return "\n".join(texts)
