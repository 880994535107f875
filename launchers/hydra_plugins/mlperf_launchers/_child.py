"""What a worker runs, a process for one job or several: ``python -m ...mlperf_launchers._child CHANNEL LIFELINE``.

``CHANNEL`` is a socket: the launcher writes the path of a request on a line, and gets a line back once the answer is
written, ``more`` where the process can take another job and ``last`` where it now ends. Its end means that no job
will come. ``LIFELINE`` is the reading end of a pipe whose other end only the launcher holds. When that closes, the
launcher is gone: the job is then interrupted as by Ctrl-C, and killed where that does not end it in time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra_plugins.mlperf_launchers._job import Request, encode, error_of

from mlperf_exp import running
from mlperf_exp.cli import leave
from mlperf_exp.errors import Interrupted, InvalidResult, UserError
from mlperf_exp.files import write_atomic
from mlperf_exp.report import later


def main() -> NoReturn:
    """Run the jobs that come, leave their results, end the process."""
    channel, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    channel.set_inheritable(False)
    os.set_inheritable(lifeline, False)
    grace = [60.0]
    threading.Thread(target=_follow, args=(lifeline, grace), name="lifeline", daemon=True).start()
    with contextlib.suppress(OSError, RuntimeError):
        faulthandler.enable()
    logging.raiseExceptions = False  # a log that cannot be written (full disk) must not print tracebacks
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with channel.makefile("r", encoding="utf-8") as asked:
        for line in asked:
            request: Request = pickle.loads(Path(line.rstrip("\n")).read_bytes())
            grace[0] = request.grace_s
            again = _serve(request)
            with contextlib.suppress(OSError):  # the launcher is gone; the answer stands
                channel.sendall(b"more\n" if again else b"last\n")
            if not again:
                break
    # From here all results stand. Threads and atexit functions of libraries that hang are dumped and ended.
    faulthandler.dump_traceback_later(max(0.1, grace[0]), exit=True)
    running.close()
    later.close()
    leave(0)


def _serve(request: Request) -> bool:
    """Run one job and leave its answer; whether the process is good for another."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a launcher started by `command &` has it ignored
    if request.log is not None:
        _print_to(request.log)
    running.expect_another(request.another)
    outcome = _outcome(request)
    write_atomic(request.answer, encode(outcome))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    error = error_of(outcome) if isinstance(outcome, JobReturn) else outcome
    return request.another and (error is None or isinstance(error, UserError | InvalidResult))


def _print_to(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _outcome(request: Request) -> JobReturn | Exception:
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held by the launcher until now
            return _run(request)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        return Interrupted("the job was interrupted")
    except Exception as error:
        return error


def _run(request: Request) -> JobReturn:
    sys.path[:], sys.argv[:] = request.sys_path, request.argv
    state, task_function, context = pickle.loads(request.shared)
    Singleton.set_state(state)
    setup_globals()
    config: Any = pickle.loads(request.config)
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _follow(lifeline: int, grace_s: list[float]) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace_s[0])
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
