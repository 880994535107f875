"""``python -m mlperf_exp.telemetry``: prints what can be sampled on this machine, and one sample.

Beside a run it is started with a folder, samples into ``telemetry.jsonl`` until its standard input is closed, and ends
with its parent, however that one ends.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from mlperf_exp.telemetry import FILE
from mlperf_exp.telemetry.nvml import Nvml, throttling
from mlperf_exp.telemetry.processes import Tree
from mlperf_exp.telemetry.rapl import Rapl

_LOOK_FOR_OTHERS_S = 5.0


class Sources:
    """Everything that can be read here, and why the rest cannot."""

    def __init__(self, pid: int, gpus: int | None, without: set[int]) -> None:
        self.unreadable: dict[str, str] = {}
        self._nvml, problem = Nvml.open(gpus)
        if problem is not None:
            self.unreadable["gpu"] = problem
        self._rapl, problem = Rapl.open()
        if problem is not None:
            self.unreadable["cpu"] = problem
        self._tree = Tree(pid, without)
        self._others: list[int] = []
        self._others_at = float("-inf")

    def header(self, interval_s: float) -> dict[str, Any]:
        """The first line of the file."""
        gpus = [] if self._nvml is None else self._nvml.describe()
        return {"interval_s": interval_s, "hostname": socket.gethostname(), "gpus": gpus, "unreadable": self.unreadable}

    def sample(self) -> dict[str, Any]:
        """One line: see ``Nvml.sample``, ``Rapl.joules`` and ``Tree.sample``; ``others`` are strangers on our GPUs."""
        line: dict[str, Any] = {"at": round(time.time(), 3), "ns": time.perf_counter_ns()}
        if self._nvml is not None:
            line["gpus"] = self._nvml.sample()
        if self._rapl is not None:
            line["cpu_j"] = self._rapl.joules()
        line |= self._tree.sample()
        if self._nvml is not None:
            now = time.monotonic()
            if now - self._others_at >= _LOOK_FOR_OTHERS_S:
                self._others_at, self._others = now, self._strangers(self._nvml)
            line["others"] = len(self._others)
        return line

    def _strangers(self, nvml: Nvml) -> list[int]:
        """Processes on our GPUs that are not ours; none where NVML does not know ours by the numbers known here."""
        users, ours = nvml.processes(), self._tree.pids
        return sorted(users - ours) if users & ours else []


def follow(folder: Path, sources: Sources, interval_s: float, parent: int) -> None:
    """Sample into ``folder`` until standard input ends or ``parent`` is gone; a full disk costs lines only."""
    with (folder / FILE).open("ab", buffering=0) as file:
        _write(file, sources.header(interval_s))
        due = time.monotonic()
        going = True
        while going:
            # The last sample comes after the end of what is measured, so that its whole is between two of them.
            going = os.getppid() == parent and not _told_to_end(max(0.0, due - time.monotonic()))
            _write(file, sources.sample())
            due = max(due + interval_s, time.monotonic())


def _told_to_end(wait_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def _write(file: Any, line: dict[str, Any]) -> None:
    try:
        file.write(json.dumps(line).encode() + b"\n")
    except OSError:
        return


def show() -> None:
    """Print what can be read on this machine, as a user would ask it."""
    sources = Sources(os.getpid(), None, set())
    sources.sample()
    time.sleep(0.5)
    header, line = sources.header(0.5), sources.sample()
    for number, gpu in enumerate(header["gpus"]):
        now = line["gpus"][number]
        print(f"GPU {number}: {gpu['name']}, driver {gpu['driver']}, power limit {gpu['power_limit_w']} W")
        print("  " + ", ".join(f"{key} {value}" for key, value in now.items()))
        print(f"  slowed down by: {', '.join(throttling(now['reasons'] or 0)) or 'nothing'}")
    if "cpu_j" in line:
        print(f"CPU packages: {line['cpu_j'] / 0.5:.1f} W")
    for what, why in sources.unreadable.items():
        print(f"{what}: not readable: {why}")
    print(f"this process: {line['rss_mib']} MiB, {line['cpu_s']} s of CPU time")


def main() -> int:
    """One-shot printout, or the sampler beside a run; returns the exit status."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.telemetry", description="Show what can be sampled here.")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # these are given by the run itself
    parser.add_argument("--interval", type=float, default=0.5, help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--without", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.into is None:
        show()
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run decides when it ends
    os.nice(5)
    without = {*options.without, os.getpid()}
    follow(options.into, Sources(options.parent, options.gpus, without), options.interval, options.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
