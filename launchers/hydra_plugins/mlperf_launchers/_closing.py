"""The end of an attempt on the system: it is told to end, what it left is brought home, then it is removed."""

from __future__ import annotations

import time
from collections.abc import Callable

from hydra_plugins.mlperf_launchers._cluster import Cluster, Unreachable
from hydra_plugins.mlperf_launchers._outcome import one_line
from hydra_plugins.mlperf_launchers._process import say
from hydra_plugins.mlperf_launchers._track import CANCEL_S, Track

_PAUSES_S = (0.0, 1.0, 4.0)


class Closing:
    """Blocking steps, for threads; all of them are quick once ``given_up`` says so.

    Args:
        cluster: the system.
        keep: what was created stays there.
        given_up: whether the user does not want to wait any more.
    """

    def __init__(self, cluster: Cluster, keep: bool, given_up: Callable[[], bool]) -> None:
        self._cluster, self._keep, self._given_up = cluster, keep, given_up

    def cancel(self, track: Track) -> None:
        """Tell the attempt to end, as soon as the system answers."""
        until = time.monotonic() + CANCEL_S
        while time.monotonic() < until and not self._given_up():
            try:
                self._cluster.cancel(track.attempt)
            except Unreachable:
                time.sleep(1.0)
            else:
                return

    def close(self, track: Track) -> None:
        """Bring home what the attempt left, then remove it from the system."""
        problems = []
        if not self._given_up():
            for step in (self._read, self._fetch):
                problems += _patiently(step, track)
        track.log.close()
        if track.log.problem():
            problems.append(str(track.log.problem()))
        track.problem = "; ".join(problems) or None
        if not self._keep and not track.uncancelled and not self._given_up():
            for problem in _patiently(self._remove, track):
                say(f"mlperf_exp: job {track.attempt.name}: {track.attempt.id} could not be removed: {problem}\n")

    def _read(self, track: Track) -> None:
        self._cluster.logs(track.attempt, track.log, True)

    def _fetch(self, track: Track) -> None:
        self._cluster.fetch(track.attempt)

    def _remove(self, track: Track) -> None:
        self._cluster.remove(track.attempt)


def _patiently(step: Callable[[Track], None], track: Track) -> list[str]:
    """Try what may fail for a moment a few times; what is wrong at last."""
    problem = ""
    for pause in _PAUSES_S:
        time.sleep(pause)
        try:
            step(track)
        except Exception as error:  # no job may be lost to a client library's surprise
            problem = one_line(error)
        else:
            return []
    return [problem]
