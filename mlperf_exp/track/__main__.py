"""MLflow's side of a run, in a process of its own.

``python -m mlperf_exp.track RUN_DIR`` makes MLflow agree with the run's folder. While the run lasts it follows
``live.jsonl``; when the run has ended it sends everything else and closes the MLflow run. The same command, after an
outage or a kill, continues the same MLflow run and sends what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from mlperf_exp.credentials import redact
from mlperf_exp.track import content
from mlperf_exp.track.mirror import Mirror, prepare_environment
from mlperf_exp.track.tracker import OPTIONS, RESULT, absolute_uri, read_object

_PAUSES_S = (0.0, 1.0, 3.0)  # before each attempt to deliver the whole
_MAX_BACKOFF_S = 60.0


class Parent:
    """The process that measures: whether it has said that all is written, and whether it lives."""

    def __init__(self, options: Mapping[str, Any], run_dir: Path, supervised: bool) -> None:
        self._pid, self._started_at = options.get("parent_pid"), options.get("parent_started_at", 0.0)
        self._result = run_dir / RESULT
        self._supervised = supervised

    def wait(self, seconds: float) -> None:
        """Sleep, shorter if the parent speaks up or dies."""
        if self._supervised:
            select.select([sys.stdin], [], [], seconds)
        else:
            time.sleep(seconds)

    def done(self) -> bool:
        """Whether nothing more will come."""
        # Readable: "done", or the end of the pipe. A process forked from the parent may hold the pipe open for longer
        # than the parent lives, so that the parent itself is looked at too.
        spoken = select.select([sys.stdin], [], [], 0)[0] if self._supervised else self._result.exists()
        return bool(spoken) or not self.alive()

    def alive(self) -> bool:
        """Whether the very process still runs: a later one may have its number."""
        if self._pid is None:
            return False
        try:
            process = psutil.Process(self._pid)
            same = abs(process.create_time() - self._started_at) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def follow(mirror: Mirror, parent: Parent) -> None:
    """Send live metrics until the parent has written everything or is gone."""
    interval = wait = max(0.2, float(mirror.options["interval_s"]))
    due = time.monotonic()
    while not parent.done():
        if time.monotonic() >= due:
            wait = interval if mirror.attempt(mirror.send_live) else min(2 * wait, max(interval, _MAX_BACKOFF_S))
            due = time.monotonic() + wait
        parent.wait(min(1.0, max(0.0, due - time.monotonic())))


def deliver(mirror: Mirror) -> bool:
    """Send all that is missing and close the MLflow run; a few attempts."""
    for pause in _PAUSES_S:
        time.sleep(pause)
        if mirror.attempt(mirror.send_live, mirror.send_result):
            return True
    return False


def read_options(run_dir: Path, uri: str | None) -> dict[str, Any]:
    """How to track: as the run wrote it, or from the result of a run that was not tracked; ``uri`` overrides."""
    options = read_object(run_dir / OPTIONS)
    result = read_object(run_dir / RESULT)
    if not options and result:
        tracking = result["plan"]["config"].get("tracking") or {}
        options = {
            "uri": absolute_uri(tracking.get("uri", "sqlite:///outputs/mlflow.db")),
            "experiment": tracking.get("experiment", "mlperf_exp"),
            "interval_s": 5.0,
            "run_id": result["run"]["id"],
            "run_name": result["run"]["name"],
            "started_at": content.unix_seconds(result["run"]["started_at"]),
        }
    if not options:
        raise SystemExit(f"RUN_DIR: {run_dir} holds neither {OPTIONS} nor {RESULT}. Give the folder of a run")
    return {**options, "uri": absolute_uri(uri)} if uri else options


def main() -> int:
    """Track one run; see the module. Exit status 0: MLflow has it all; 1: not yet; 2: usage."""
    parser = argparse.ArgumentParser(
        "python -m mlperf_exp.track", description="Send a run to MLflow, or what it lacks."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--uri", help="another MLflow than the run's own")
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)  # started by the run itself
    args = parser.parse_args()
    if args.supervised:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides how it ends, and this process tells it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.nice(10)
    run_dir: Path = args.run_dir.absolute()
    options = read_options(run_dir, args.uri)
    prepare_environment(options["uri"])
    parent = Parent(options, run_dir, args.supervised)
    with _whole_run(run_dir) as free:
        if not free:
            print(f"{run_dir} is being sent by another process; nothing to do", file=sys.stderr)
            return 1
        mirror = Mirror(run_dir, options)
        if mirror.ended not in (None, "lost"):
            print(f"MLflow has it all: run {mirror.run_id} at {redact(options['uri'])}")
            return 0
        if not (run_dir / RESULT).exists() and not args.supervised and options["hostname"] != socket.gethostname():
            print(f"{run_dir} has no {RESULT} yet and runs on {options['hostname']}: ask there", file=sys.stderr)
            return 1
        follow(mirror, parent)
        sent = deliver(mirror)
    if not args.supervised:
        there = redact(options["uri"])
        print(f"MLflow run {mirror.run_id} at {there}" if sent else f"tracking.uri: MLflow at {there}: {mirror.error}")
    return 0 if sent else 1


@contextlib.contextmanager
def _whole_run(run_dir: Path) -> Iterator[bool]:
    """Whether this process alone sends this run."""
    handle = os.open(run_dir, os.O_RDONLY)  # the folder itself is the lock: no file is left behind
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is sent and closed; tearing MLflow's modules down would take longer than sending did
