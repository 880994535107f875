"""MLflow's side of a run, in a process of its own.

``python -m mlperf_exp.track RUN_DIR`` makes MLflow agree with the run's folder. While the run lasts it follows
``live.jsonl``; when the run has ended it sends everything else and closes the MLflow run. The same command, after an
outage or a kill, continues the same MLflow run and sends what is missing. With the folder of a sweep it does so for
the sweep and all of its runs (:mod:`mlperf_exp.track.sweep`).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from mlperf_exp.credentials import redact
from mlperf_exp.sweep.record import SWEEP
from mlperf_exp.track.mirror import Mirror, prepare_environment
from mlperf_exp.track.process import PAUSES_S, Parent, alone_in, read_options
from mlperf_exp.track.sweep import SweepMirror, track_sweep
from mlperf_exp.track.tracker import RESULT

_MAX_BACKOFF_S = 60.0


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
    for pause in PAUSES_S:
        time.sleep(pause)
        if mirror.attempt(mirror.send_live, mirror.send_result):
            return True
    return False


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
    # A run that goes on in the folder of one that was killed finds that one's process still sending: its own waits.
    with alone_in(run_dir, wait=args.supervised) as free:
        if not free:
            print(f"{run_dir} is being sent by another process; nothing to do", file=sys.stderr)
            return 1
        if (run_dir / SWEEP).exists():
            return _sweep(run_dir, options, parent, args.supervised)
        mirror = Mirror(run_dir, options)
        if not args.supervised and mirror.ended not in (None, "lost"):
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


def _sweep(sweep_dir: Path, options: dict[str, Any], launcher: Parent, supervised: bool) -> int:
    mirror = SweepMirror(sweep_dir, options)
    sent = track_sweep(mirror, launcher, max(0.2, float(options["interval_s"])))
    if not supervised:
        there = redact(options["uri"])
        left = ", ".join(folder.name for folder in mirror.unsent())
        print(f"MLflow run {mirror.parent.run_id} at {there}" if sent else f"{there}: {mirror.error}; not sent: {left}")
    return 0 if sent else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is sent and closed; tearing MLflow's modules down would take longer than sending did
