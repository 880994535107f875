"""Follows a log that a system gives as a stream of text, and completes it at the job's end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hydra_plugins.mlperf_launchers._cluster import Log

_AGAIN_S = 2.0  # between the end of a stream that broke and the next
_LAST_WORDS_S = 10.0  # for the stream to end after the job


class Stream:
    """One node's log. Streams break in as many ways as there are libraries under them, so nothing rests on this one:
    at the end the whole log is read, and what the stream has not passed on follows.

    Args:
        follow: gives the log from its beginning and waits for more, until the job ends.
        read: the log as it is now.
        log: where it goes.
        node: the node's name there.
    """

    def __init__(self, follow: Callable[[], Iterable[str]], read: Callable[[], str], log: Log, node: str = "") -> None:
        self._follow, self._read, self._log, self._node = follow, read, log, node
        self._seen = 0  # characters that were passed on
        self._ended_at: float | None = None
        self._lock = threading.Lock()
        self._start()

    def renew(self) -> None:
        """Follow again if the stream ended: it may have been too early for it, or the connection was lost."""
        if self._ended_at is not None and time.monotonic() - self._ended_at > _AGAIN_S:
            self._start()

    def finish(self) -> None:
        """After the job's end: pass on all that there is.

        Raises:
            Exception: as ``read`` does.
        """
        self._thread.join(_LAST_WORDS_S)
        self._take(0, self._read())

    def _start(self) -> None:
        self._ended_at = None
        self._thread = threading.Thread(target=self._run, name="log stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        position = 0
        with contextlib.suppress(Exception):  # the rest is read at the end
            for text in self._follow():
                position = self._take(position, text)
        self._ended_at = time.monotonic()

    def _take(self, position: int, text: str) -> int:
        """Pass on what is new of ``text``, which begins ``position`` characters into the log."""
        with self._lock:
            new = text[max(0, self._seen - position) :]
            if new:
                self._seen = position + len(text)
                self._log.write(self._node, new.encode(errors="replace"))
        return position + len(text)


class GrowingFile:
    """A log that is a file on this side."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0

    def pass_on(self, log: Log, node: str) -> None:
        """What is new since the last call."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(self._seen)
            while data := file.read(1 << 20):
                self._seen += len(data)
                log.write(node, data)
