"""Sees to it that no engine outlives the framework: a small process that waits for its parent's end.

vLLM's engine, a process of its own, keeps running, and keeps a GPU's memory, when its parent is killed. All processes
that are started between :meth:`Reaper.start` and :meth:`Reaper.seal` inherit a mark in their environment; when the
parent's end of a pipe closes, for whatever reason, the reaper kills every process that carries the mark.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_VARIABLE = "MLPERF_EXP_MARK"
_WRITING_S = 10.0


class Reaper:
    """The parent's handle; see the module."""

    def __init__(self, mark: str, process: subprocess.Popen[bytes]) -> None:
        self._mark, self._process = mark, process

    @classmethod
    def start(cls, folder: str | None = None) -> Reaper:
        """Start the process and mark this one's future children; ``folder`` is theirs, and goes with them."""
        mark = secrets.token_hex(8)
        clean = {key: value for key, value in os.environ.items() if key != _VARIABLE}
        process = subprocess.Popen(
            [sys.executable, "-S", __file__, mark, *([folder] if folder else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean,
            start_new_session=True,
        )
        os.environ[_VARIABLE] = mark
        return cls(mark, process)

    def seal(self) -> None:
        """Mark no more: processes that are started from now on are not the engine's."""
        os.environ.pop(_VARIABLE, None)

    def kill(self) -> None:
        """End what still carries the mark, and the reaper."""
        self.seal()
        kill_marked(self._mark)
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def kill_marked(mark: str) -> None:
    """Kill every process, but this one, that started with the mark in its environment.

    Python's resource trackers are spared: they end by themselves, and remove the shared memory of the killed.
    """
    wanted = f"{_VARIABLE}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            marked = wanted in (folder / "environ").read_bytes().split(b"\0")
            if marked and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:  # gone meanwhile, or another user's
            continue


def remove(folder: str) -> None:
    """Remove a folder in which processes that were just killed, or end with those, may still write for a moment."""
    deadline = time.monotonic() + _WRITING_S
    while Path(folder).exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()  # returns when the parent is gone, or closes the pipe
    kill_marked(sys.argv[1])
    for each in sys.argv[2:]:
        remove(each)
