"""Submissions under way: in threads of their own, in order, and repeated where the system does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hydra_plugins.mlperf_launchers._cluster import Cluster, LaunchError, Unreachable
from hydra_plugins.mlperf_launchers._ledger import Try

_AGAIN_S = 2.0


@dataclass(slots=True)
class _Submission:
    note: Try
    future: Future[str]
    since_s: float  # when it was begun, on the monotonic clock


class Submitter:
    """Submits attempts, and looks for those whose submission an earlier process did not see confirmed.

    Args:
        cluster: the system.
        patience_s: for how long an attempt is submitted again to a system that does not answer.
        woken: set whenever a submission has ended.
    """

    def __init__(self, cluster: Cluster, patience_s: float, woken: threading.Event) -> None:
        self._cluster, self._patience_s, self._woken = cluster, patience_s, woken
        self._pool = ThreadPoolExecutor(max(1, cluster.submits_at_once), "submit")
        self._under_way: dict[int, _Submission] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def submit(self, note: Try, now: float) -> None:
        """Begin to submit an attempt."""
        self._begin(note, self._pool.submit(self._cluster.submit, note.attempt), now)

    def find(self, note: Try, now: float) -> None:
        """Begin to look for an attempt; its submission fails where there is none."""
        self._begin(note, self._pool.submit(self._find, note), now)

    def ended(self, now: float, give_up: bool) -> Iterator[tuple[Try, Exception | None]]:
        """The attempts whose submission is over, with the system's name or with what went wrong; each is told once.

        Args:
            now: the monotonic clock.
            give_up: do not ask again a system that does not answer.
        """
        for number, one in list(self._under_way.items()):
            if not one.future.done():
                continue
            del self._under_way[number]
            error = one.future.exception()
            if isinstance(error, Unreachable) and now - one.since_s < self._patience_s and not give_up:
                self._begin(one.note, self._pool.submit(self._again, one.note), one.since_s)
            elif error is None:
                one.note.attempt = one.note.attempt.submitted(one.future.result())
                yield one.note, None
            else:
                assert isinstance(error, Exception)
                yield one.note, error

    def close(self, wait: bool) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _begin(self, note: Try, future: Future[str], since_s: float) -> None:
        self._under_way[note.attempt.spec.number] = _Submission(note, future, since_s)
        future.add_done_callback(lambda _: self._woken.set())

    def _find(self, note: Try) -> str:
        found = self._cluster.find(note.attempt)
        if found is None:
            raise LaunchError("its submission was not confirmed, and the system does not know it")
        return found

    def _again(self, note: Try) -> str:
        """After the system did not answer: first look whether it has taken the attempt all the same."""
        time.sleep(_AGAIN_S)
        return self._cluster.find(note.attempt) or self._cluster.submit(note.attempt)
