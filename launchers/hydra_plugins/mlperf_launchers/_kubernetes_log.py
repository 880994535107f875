"""Logs of pods, followed through the API server, over its restarts and those of connections, without loss or doubling.

Each line comes with its time stamp. Where a connection ends before the container does, it is opened again a little
before the last stamp, and what was passed on already is dropped by its stamp.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Log

_PAUSE_S = 1.0
_OVERLAP_S = 2.0

Open = Callable[[int | None, bool], Any]  # (since seconds, follow) -> a response to read from


class Follower:
    """Passes on one container's log from its beginning to its end, in a thread of its own.

    Args:
        node: the name for the log's lines.
        log: where they go.
        opened: opens the log; raises where that cannot be done now.
        over: whether the container has ended (asked when a connection ends).
        whole: whether what came so far says of itself that nothing follows.
    """

    def __init__(
        self, node: str, log: Log, opened: Open, over: Callable[[], bool], whole: Callable[[], bool] = lambda: False
    ) -> None:
        self._node, self._log, self._open, self._over, self._whole = node, log, opened, over, whole
        self._last = ""  # the last stamp that was passed on
        self._same = 0  # how many lines had it
        self._response: Any = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"log of {node}", daemon=True)
        self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """The container has ended: wait for the log's end, at most so long."""
        self._thread.join(timeout_s)
        self._stopped = True
        if self._thread.is_alive() and self._response is not None:
            with contextlib.suppress(Exception):
                self._response.close()

    def _run(self) -> None:
        while not self._stopped:
            over = self._over()
            try:
                self._read(follow=not over)
            except Exception:  # whatever a broken connection raises on its way: opened again, unless it is over
                time.sleep(_PAUSE_S)
                if over and self._over():
                    return
                continue
            if over or self._whole():
                return
            time.sleep(0.2)

    def _read(self, follow: bool) -> None:
        since = None
        if self._last:
            age = datetime.now(UTC).timestamp() - _seconds(self._last)
            since = max(1, math.ceil(age + _OVERLAP_S))
        self._response = self._open(since, follow)
        skip, count = self._last, self._same
        try:
            for line in _lines(self._response):
                stamp, _, text = line.partition(b" ")
                told = stamp.decode(errors="replace")
                if skip and (told < skip or (told == skip and count > 0)):
                    count -= told == skip
                    continue
                self._same = self._same + 1 if told == self._last else 1
                self._last = told
                self._log.write(self._node, text)
                if self._whole():
                    return
        finally:
            with contextlib.suppress(Exception):
                self._response.close()


def _lines(response: Any) -> Iterator[bytes]:
    """Whole lines; what comes without an end is the log's last."""
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _seconds(stamp: str) -> float:
    """RFC 3339 with up to nine digits of a second."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()
    return 0.0
