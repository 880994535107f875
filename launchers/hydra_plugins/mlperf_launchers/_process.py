"""A worker's process as seen from the launcher: how it starts, where its output goes, how it is brought to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import IO, TextIO

from hydra_plugins.mlperf_launchers._job import Job

_TERM_S = 5.0  # between SIGTERM and SIGKILL, at most
_CHUNK = 1 << 16
_DRAIN_CHUNKS = 1024  # of a pipe that a surviving grandchild still writes to


class Output(Enum):
    """Where a job's standard output and error go."""

    terminal = "terminal"  # as they are: live displays work
    lines = "lines"  # to the terminal line by line, each with the job's number; and to the job's log
    log = "log"  # to the job's log only


class Worker:
    """A process that runs jobs one after another, in a session of its own: Ctrl-C reaches it through the launcher only.

    Args:
        first: the first job, whose request is written.
        output: where the jobs' output goes.
        env: variables on top of the launcher's own.
        held: file descriptors that it keeps open: first the lifeline, which tells it that the launcher is gone.
        grace_s: how long it may take to end after an interrupt.
        timeout_s: after how long a job is interrupted; None: never.
        ended: called once, from another thread, when the process has ended; may be replaced.
    """

    def __init__(
        self,
        first: Job,
        output: Output,
        env: Mapping[str, str],
        held: Sequence[int],
        grace_s: float,
        timeout_s: float | None,
        ended: Callable[[], None],
    ) -> None:
        self.job: Job | None = None
        self.group = first.group
        self.status: int | None = None  # as subprocess has it; set just before ``ended`` is called
        self.stopped_for: str | None = None
        self.ended = ended
        self.started_s = time.monotonic()  # of the job that it runs
        self.output = output
        self._grace_s, self._timeout_s = grace_s, timeout_s
        self._stops: list[tuple[float, signal.Signals]] = []
        self._log: IO[bytes] | None = first.log.open("wb", buffering=0) if output is Output.log else None
        target = {Output.terminal: None, Output.lines: subprocess.PIPE, Output.log: self._log}[output]
        self.channel, theirs = socket.socketpair()
        command = [sys.executable, "-m", "hydra_plugins.mlperf_launchers._child", str(theirs.fileno()), str(held[0])]
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        with theirs, _interrupts_held():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target if output is not Output.log else subprocess.STDOUT,
                env={**os.environ, **env},
                pass_fds=(theirs.fileno(), *held),
                start_new_session=True,
            )
        self.pipes = [
            Lines(pipe, stream)
            for pipe, stream in ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
            if pipe is not None
        ]
        threading.Thread(target=self._wait, name=f"job {first.number}", daemon=True).start()

    def begin(self, job: Job) -> None:
        """Have it run this job, whose request is written; what it prints from now on is this job's."""
        if self.output is Output.lines:
            self._close_log()
            self._log = job.log.open("wb", buffering=0)
        for pipe in self.pipes:
            pipe.belong(f"[job {job.number}] ", self._log)
        self.job, self.started_s = job, time.monotonic()
        with contextlib.suppress(OSError):  # it is dead, which its status tells
            self.channel.sendall(f"{job.request}\n".encode())

    def heard(self) -> str | None:
        """What it says after a job, ``more`` or ``last``; None where it says nothing more."""
        try:
            return self.channel.recv(16).decode().strip() or None
        except OSError:
            return None

    def done(self) -> None:
        """The job has left its answer: show the rest of its output."""
        for pipe in self.pipes:
            if not pipe.pipe.closed:
                pipe.flush()
        self.job = None

    def dismiss(self) -> None:
        """No job will come: it stops what it had kept, and ends."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def _wait(self) -> None:
        # Not reaped here, so that the process's number stays its own for as long as signals may be sent to it.
        end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        self.status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        self.ended()

    @property
    def deadline(self) -> float | None:
        """When ``advance`` is to be called next, on the monotonic clock."""
        return self._stops[0][0] if self._stops else None if self.stopped_for else self._timeout_at

    @property
    def _timeout_at(self) -> float | None:
        return None if self._timeout_s is None or self.job is None else self.started_s + self._timeout_s

    def advance(self, now: float) -> None:
        """Do what is due: interrupt a job that takes too long, go on to stronger signals."""
        if self._timeout_at is not None and now >= self._timeout_at:
            self.stop("timeout", now)
        while self._stops and self._stops[0][0] <= now:
            self._signal(self._stops.pop(0)[1])

    def stop(self, reason: str, now: float) -> None:
        """Ask the process to end: SIGINT, on which a run keeps what it has; SIGTERM; SIGKILL for the group."""
        if self.stopped_for is None:
            self.stopped_for = reason
            term = now + self._grace_s
            self._stops = [
                (now, signal.SIGINT),
                (term, signal.SIGTERM),
                (term + min(_TERM_S, self._grace_s), signal.SIGKILL),
            ]

    def kill(self, reason: str) -> None:
        """End the process and all of its group at once."""
        self.stopped_for = self.stopped_for or reason
        self._stops = []
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                os.kill(self._process.pid, number)

    def close(self) -> None:
        """After the end: show the rest of the output, and leave nothing of the job's group behind if it went wrong."""
        if self.status is None or self.status != 0:
            self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in self.pipes:
            pipe.drain()
        self.channel.close()
        self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def how(self) -> str:
        """How the process ended, as the end of a sentence about the job."""
        if self.status is not None and self.status < 0:
            try:
                name = signal.Signals(-self.status).name
            except ValueError:
                name = f"signal {-self.status}"
            return f"was killed by {name}"
        return f"ended with exit status {self.status}"


class Lines:
    """Passes a pipe's text on line by line, with a prefix, and keeps it as it came in a log."""

    def __init__(self, pipe: IO[bytes], stream: TextIO) -> None:
        self.pipe = pipe
        self._prefix, self._stream = "", stream
        self._log: IO[bytes] | None = None
        self._rest = b""
        os.set_blocking(pipe.fileno(), False)

    def belong(self, prefix: str, log: IO[bytes] | None) -> None:
        """What comes from now on has this prefix, and goes to this log."""
        self._prefix, self._log = prefix, log

    def read(self) -> int:
        """Pass on what is there: how many bytes, 0 at the pipe's end, -1 where nothing is there yet."""
        try:
            data = os.read(self.pipe.fileno(), _CHUNK)
        except BlockingIOError:
            return -1
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk
                self._log.write(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _CHUNK:
            lines, self._rest = [*lines, self._rest], b""
        self._show(lines)
        return len(data)

    def flush(self) -> None:
        """Pass on all that has come, a last line without its end too."""
        for _ in range(_DRAIN_CHUNKS):
            if self.read() <= 0:  # -1: something that the job started still holds the other end
                break
        self._show([self._rest] if self._rest else [])
        self._rest = b""

    def drain(self) -> None:
        """Pass on what is left after the process has ended, and close the pipe."""
        self.flush()
        self.pipe.close()

    def _show(self, lines: list[bytes]) -> None:
        if not lines:
            return
        # Of a line that was overwritten in place, a terminal would show the last state.
        shown = (line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines)
        say("".join(f"{self._prefix}{line}\n" for line in shown), self._stream)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write to a terminal (standard error unless told) that may be gone, or of a poor encoding."""
    stream = sys.stderr if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a process that starts here hold SIGINT back until it can answer it; its Python would die in an import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
