"""What a launcher sleeps on: the workers' words, their output, and a pipe that wakes it."""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable
from typing import Any

from hydra_plugins.mlperf_launchers._process import Worker


class Watch:
    """One ``select`` over all workers. :meth:`close` lets go of its descriptors."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        self._selector.register(self._read, selectors.EVENT_READ, None)

    def add(self, worker: Worker) -> None:
        """Listen to a worker."""
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        for pipe in worker.pipes:
            self._selector.register(pipe.pipe, selectors.EVENT_READ, pipe)

    def remove(self, worker: Worker) -> None:
        """Listen to it no more."""
        streams: list[Any] = [worker.channel, *(pipe.pipe for pipe in worker.pipes)]
        for stream in streams:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(stream)

    def silence(self, worker: Worker) -> None:
        """Its channel has ended; its output may still come."""
        self._selector.unregister(worker.channel)

    def wake(self) -> None:
        """End :meth:`wait`; from any thread, and from a signal's handler."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._write, b"\0")

    def wait(self, timeout_s: float | None, heard: Callable[[Worker], None]) -> None:
        """Sleep until something happens; output is passed on, ``heard`` is called for a worker that says something."""
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read, 4096)
            elif isinstance(key.data, Worker):
                heard(key.data)
            elif key.data.read() == 0:
                self._selector.unregister(key.fileobj)

    def close(self) -> None:
        """Let go of the descriptors."""
        self._selector.close()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
