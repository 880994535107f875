"""One replica: an engine in an actor's process, and its connection to the fleet.

It lives on two threads beside the engine's own: one reads queries, the other sends what the engine says, at most once
a millisecond, with a beat when there is nothing to say and what was written to the log. A replica whose fleet hangs up,
or is silent for half a minute, ends itself, its process included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_exp.errors import RunFailed
from mlperf_exp.messages import Answers, Completion, Plan, Query
from mlperf_exp.sut.base import HoldsSamples, Reports, SystemUnderTest
from mlperf_exp.sut.replicas import wire

_PACE_S = 0.001  # between two frames: a batch grows meanwhile
_LOG_S = 1.0
_LOG_PIECE = 1 << 16
_FLEET_SILENT_S = 30.0
_END_S = 30.0  # for an engine to be stopped, before the process ends in any case


class Replica:
    """See the module; ``start``, ``reset`` and ``stop`` are called through Ray, on one thread after the other."""

    def __init__(self, number: int, plan: Plan, model: Path | None, address: tuple[str, int], token: str) -> None:
        self._number, self._address, self._token = number, address, token
        self._folder = Path(tempfile.mkdtemp(prefix=f"mlperf_exp-replica-{number}-"))
        self._plan, self._model = replace(plan, run_dir=self._folder), model
        self._sut: SystemUnderTest | None = None
        self._socket: socket.socket | None = None
        self._outbox = Outbox()
        self._ended = threading.Event()
        self._stopping = threading.Lock()
        self._logging = threading.Lock()
        self._logged = 0  # bytes of the log that were sent

    def start(self, samples: Sequence[Any]) -> dict[str, float]:
        """Connect, start the engine and warm it up; returns the seconds of each phase.

        Raises:
            UserError, RunFailed: as the engine's own start.
        """
        from mlperf_exp.sut import create

        with contextlib.suppress(OSError):  # only root may: a cluster's Ray runs its workers after everything else
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # of this thread, and of all that come from it
        # On processors vLLM would bind each engine to the same cores, as if it were alone.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        self._print_to_log()
        self._connect()
        self._sut = create(self._plan, self._model)
        try:
            phases = self._sut.start(samples)
        except BaseException:
            self._send_log()
            raise
        if isinstance(self._sut, Reports):
            for said in self._sut.report()[1]:
                self._outbox.put(wire.Warned(said))
        return phases

    def reset(self, samples: Sequence[Any]) -> None:
        """See :class:`mlperf_exp.sut.base.SystemUnderTest`."""
        assert self._sut is not None
        self._sut.reset(samples)

    def join(self) -> None:
        """Return when this replica has ended in order."""
        self._ended.wait()

    def stop(self) -> None:
        """Stop the engine, send the last of its log, hang up and remove the folder."""
        with self._stopping:
            if self._ended.is_set():
                return
            with contextlib.suppress(Exception):
                if self._sut is not None:
                    self._sut.stop()
            self._send_log()
            self._outbox.close()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ended.set()

    def _print_to_log(self) -> None:
        """What this process and its children print goes where the engine writes too."""
        file = os.open(self._folder / "engine.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    def _connect(self) -> None:
        try:
            self._socket = socket.create_connection(self._address, timeout=30)
        except OSError as error:
            host, port = self._address
            raise RunFailed(
                f"{socket.gethostname()} cannot reach LoadGen's process at {host}:{port}: {error.strerror or error}"
            ) from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(_FLEET_SILENT_S)
        hello = wire.Hello(self._number, self._token, socket.gethostname(), os.getpid())
        self._socket.sendall(wire.frame(hello))
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"replica{work.__name__}", daemon=True).start()

    def _read(self) -> None:
        assert self._socket is not None
        frames = wire.Frames()
        try:
            while data := self._socket.recv(1 << 18):
                for each in frames.feed(data):
                    message = wire.to_replica.decode(each)
                    if isinstance(message, wire.Work) and self._sut is not None:
                        self._outbox.received(message.tickets)
                        self._sut.submit(list(map(Query, message.tickets, message.samples)), self._outbox)
                    elif isinstance(message, wire.Load) and self._sut is not None:
                        self._outbox.put(wire.Loaded(_load(self._sut, message)))
                    elif isinstance(message, wire.Stop):
                        self._end_process_later()
                        self.stop()
                        return
        except Exception as error:
            self._outbox.failed(f"its connection broke: {type(error).__name__}: {error}")
        if not self._ended.is_set():
            self._end_process()

    def _end_process_later(self) -> None:
        """Whoever started the process ends it, unless Ray was lost meanwhile."""
        timer = threading.Timer(_END_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def _end_process(self) -> None:
        """The fleet is gone: nobody waits for this engine any more."""
        self._end_process_later()
        self.stop()
        os._exit(0)

    def _write(self) -> None:
        assert self._socket is not None
        log_at = time.monotonic()
        while not self._outbox.closed:
            for data in self._outbox.take(wire.BEAT_S):
                try:
                    self._socket.sendall(data)
                except OSError:
                    return  # the reader sees it too
            if time.monotonic() - log_at > _LOG_S:
                log_at = time.monotonic()
                self._take_log()
            time.sleep(_PACE_S)

    def _take_log(self, last: bool = False) -> None:
        """Put the next piece of the log into the outbox; the end of it with ``last``."""
        with self._logging, contextlib.suppress(OSError), (self._folder / "engine.log").open("rb") as file:
            if last:
                self._logged = max(self._logged, file.seek(0, os.SEEK_END) - _LOG_PIECE)
            file.seek(self._logged)
            if text := file.read(_LOG_PIECE):
                self._logged += len(text)
                self._outbox.put(wire.Log(text))

    def _send_log(self) -> None:
        """Send the end of the log, and wait until it is sent."""
        self._take_log(last=True)
        self._outbox.drain(2.0)


def _load(sut: SystemUnderTest, message: wire.Load) -> str | None:
    if not isinstance(sut, HoldsSamples):
        return None
    try:
        (sut.load if message.wanted else sut.unload)(message.samples)
    except Exception as error:  # as the driver's own: it becomes the run's failure
        return f"{type(error).__name__}: {error}"
    return None


class Outbox:
    """The engine's sink: keeps what it says until the writer takes it."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._empty = threading.Event()
        self._came: dict[int, int] = {}  # ticket -> when
        self._first: list[int] = []
        self._first_ids: list[int] = []
        self._done: list[wire.Done] = []
        self._others: list[wire.FromReplica] = []
        self.closed = False

    def received(self, tickets: Sequence[int]) -> None:
        """The replica has these from now on."""
        now = self._clock()
        with self._lock:
            self._came.update(dict.fromkeys(tickets, now))

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        with self._lock:
            self._first += rows
            self._first_ids += tokens or [0] * len(rows)
        self._filled.set()

    def complete(self, completions: Sequence[Completion]) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        now = self._clock()
        with self._lock:
            for row, tokens, error, n_tokens in completions:
                held_us = (now - self._came.pop(row, now)) // 1000
                ids = tokens if isinstance(tokens, array) and tokens.typecode == "i" else array("i", tokens)
                self._done.append(wire.Done(row, ids.tobytes(), error, n_tokens, held_us))
        self._filled.set()

    def complete_many(self, answers: Answers) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        now = self._clock()
        rows = answers.rows.astype(np.int64)
        with self._lock:
            came = np.array([self._came.pop(row, now) for row in rows.tolist()], dtype=np.int64)
        held = (now - came) // 1000
        data = np.ascontiguousarray(answers.data)
        offsets = answers.offsets.astype(np.int64).tobytes()
        self.put(wire.Many(rows.tobytes(), data.tobytes(), str(data.dtype), offsets, held.tobytes()))

    def failed(self, reason: str) -> None:
        """See :class:`mlperf_exp.sut.base.Sink`."""
        self.put(wire.Lost(reason))

    def put(self, message: wire.FromReplica) -> None:
        """Send this too."""
        with self._lock:
            self._others.append(message)
        self._filled.set()

    def take(self, timeout_s: float) -> list[bytearray]:
        """Frames to send now, a beat at least; waits up to ``timeout_s`` for something to say."""
        self._filled.wait(timeout_s)
        with self._lock:
            self._filled.clear()
            first, ids, done, others = self._first, self._first_ids, self._done, self._others
            self._first, self._first_ids, self._done, self._others = [], [], [], []
        self._empty.set()
        frames = [wire.frame(wire.Answers(first, ids, done))] if first or done else []
        frames += [wire.frame(message) for message in others]
        return frames or [wire.frame(wire.Beat())]

    def drain(self, timeout_s: float) -> None:
        """Wait until all that was said before has been taken, and some more for it to be sent."""
        self._empty.clear()
        self._filled.set()
        if self._empty.wait(timeout_s):
            self._empty.clear()
            self._filled.set()
            self._empty.wait(timeout_s)  # the next look: what was taken first has been sent

    def close(self) -> None:
        """Nothing more is sent."""
        self.closed = True
        self._filled.set()
