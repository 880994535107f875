"""What a job's process runs: ``python -m hydra_plugins.mlperf_launchers._child REQUEST ANSWER LIFELINE``.

``LIFELINE`` is the reading end of a pipe whose other end only the launcher holds. When that closes, the launcher is
gone: the job is then interrupted as by Ctrl-C, and killed where that does not end it in time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra_plugins.mlperf_launchers._job import Request, encode

from mlperf_exp.cli import leave
from mlperf_exp.errors import Interrupted
from mlperf_exp.files import write_atomic


def main() -> NoReturn:
    """Run the job, leave its result, end the process."""
    asked, answer, lifeline = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    request: Request = pickle.loads(asked.read_bytes())
    asked.unlink()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a launcher started by `command &` has it ignored
    os.set_inheritable(lifeline, False)
    threading.Thread(target=_follow, args=(lifeline, request.grace_s), name="lifeline", daemon=True).start()
    with contextlib.suppress(OSError, RuntimeError):
        faulthandler.enable()
    logging.raiseExceptions = False  # a log that cannot be written (full disk) must not print tracebacks
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    write_atomic(answer, encode(_outcome(request)))
    # From here the result stands. Threads and atexit functions of libraries that hang are dumped and ended.
    faulthandler.dump_traceback_later(max(0.1, request.grace_s), exit=True)
    leave(0)


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


def _follow(lifeline: int, grace_s: float) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace_s)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
