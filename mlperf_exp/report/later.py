"""The reports of runs that share a process, made by another one while the next run measures.

Drawing takes seconds of processor time, which a sweep over load points would pay at each. The other process
(``python -m mlperf_exp.report.later``) has the lowest priority, reads a run's folder a line, makes its report, says to
tracking that all is written, and answers with the folder. It outlives the process that asked, until it has made all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from mlperf_exp.report.finish import report
from mlperf_exp.track.tracker import say_written

_LOWEST = 19
_PATIENCE_S = 6.0
_process: subprocess.Popen[str] | None = None
_waiting: list[Path] = []


def pid() -> int | None:
    """The other process, which is no part of what is measured; None while there is none."""
    return _process.pid if _process else None


def hand_over(run_dir: Path) -> None:
    """Have the report of a run made, whose ``result.json`` is written; returns at once."""
    global _process
    _waiting.append(run_dir)
    try:
        if _process is None:
            # A session of its own: Ctrl-C ends the run that measures, not the reports of those before it.
            _process = subprocess.Popen(
                [sys.executable, "-m", "mlperf_exp.report.later"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        assert _process.stdin is not None
        print(run_dir, file=_process.stdin, flush=True)
    except OSError:
        pass  # close() makes it


def close() -> None:
    """Wait a little for the reports that are left, then make here what the other process did not.

    On a busy machine its priority would keep it waiting for long.
    """
    global _process
    made: set[str] = set()
    if _process is not None:
        process, _process = _process, None
        with contextlib.suppress(OSError):
            try:
                said = process.communicate(timeout=_PATIENCE_S)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                said = process.communicate()[0]
            made = set(said.splitlines())
    while _waiting:
        folder = _waiting.pop(0)
        if str(folder) not in made:
            make(folder)


def make(run_dir: Path) -> None:
    """The report of a run from its record; what goes wrong costs nobody anything."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        report(run_dir, json.loads((run_dir / "result.json").read_text(encoding="utf-8")))
    with contextlib.suppress(OSError):
        say_written(run_dir)


def serve(asked: IO[str]) -> None:
    """Make reports until nobody asks any more."""
    for line in asked:
        make(Path(line.rstrip("\n")))
        with contextlib.suppress(OSError):
            print(line, end="", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_LOWEST)
    serve(sys.stdin)
