"""The sampling process, for real: what it reads of real processes, and that it ends whatever happens."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlperf_exp.config import Telemetry
from mlperf_exp.telemetry import FILE, energy
from mlperf_exp.telemetry.sampler import Sampler
from mlperf_exp.telemetry.tail import last_line, machine

OFTEN = Telemetry(interval_s=0.05)
EATER = "block = bytearray(200 * 2**20); import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


def wait_for(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_memory_and_processor_of_the_whole_tree_are_sampled_and_the_end_too(tmp_path: Path) -> None:
    path = tmp_path / FILE
    others = psutil.Process().children(recursive=True)  # left by other tests of this process, such as servers
    more_mib = sum(other.memory_info().rss for other in others if other.is_running()) / 2**20
    child = subprocess.Popen([sys.executable, "-c", EATER])
    left_out = subprocess.Popen([sys.executable, "-c", EATER])
    try:
        with Sampler.start(tmp_path, OFTEN, gpus=0, without=[left_out.pid]) as sampler:
            pid = sampler.pid
            own = psutil.Process().memory_info().rss / 2**20
            wait_for(lambda: last_line(path).get("rss_mib", 0) > own + 200)
            wait_for(lambda: last_line(path).get("cpu_s", 0) > psutil.Process().cpu_times().user + 0.2)
            assert 2 <= last_line(path)["processes"] <= 2 + len(others)
            assert last_line(path)["rss_mib"] < own + more_mib + 2 * 200 + 100
            assert machine(path)["memory_mib"] == last_line(path)["rss_mib"]
            stopping = time.perf_counter_ns()
        assert sampler.problem is None
        assert pid is not None and gone(pid)
    finally:
        for process in (child, left_out):
            process.kill()
            process.wait()
    header, samples = energy.read(path)
    assert set(header["unreadable"]) >= {"gpu"}, "no GPU was asked for"
    assert samples[-1]["ns"] > stopping, "a sample after the end: the measured window lies between two"
    assert all(b["ns"] - a["ns"] >= 0 for a, b in itertools.pairwise(samples))
    sampler.stop()  # once more does nothing


@pytest.mark.parametrize("how", ["killed", "killed, its fork lives on"])
def test_it_dies_with_its_parent(tmp_path: Path, how: str) -> None:
    """Also where a forked child has inherited the pipe that tells it."""
    script = f"""
import os, sys, time
from pathlib import Path
from mlperf_exp.config import Telemetry
from mlperf_exp.telemetry.sampler import Sampler
sampler = Sampler.start(Path({str(tmp_path)!r}), Telemetry(interval_s=0.05), 0)
child = 0
if {"fork" in how}:
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
print(sampler.pid, child, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, child = map(int, parent.stdout.readline().split())
    try:
        wait_for(lambda: "ns" in last_line(tmp_path / FILE))
        assert not gone(pid)
        parent.kill()
        parent.wait()
        wait_for(lambda: gone(pid))
    finally:
        parent.stdout.close()
        if child:
            os.kill(child, signal.SIGKILL)


def test_one_that_hangs_is_killed_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    sampler = Sampler.start(tmp_path, OFTEN, gpus=0)
    assert sampler.pid is not None
    pid = sampler.pid
    wait_for(lambda: "ns" in last_line(tmp_path / FILE))
    os.kill(pid, signal.SIGINT)  # Ctrl-C is the run's business
    os.kill(pid, signal.SIGSTOP)
    sampler.stop()
    assert gone(pid)
    assert "was killed" in str(sampler.problem)
    other = Sampler.start(tmp_path, OFTEN, gpus=0)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    wait_for(lambda: other.pid is not None and gone(other.pid))
    other.stop()
    assert other.problem == "the sampler ended before the run, with status -9"


def test_off_is_off(tmp_path: Path) -> None:
    with Sampler.start(tmp_path, Telemetry(enabled=False), gpus=0) as sampler:
        assert sampler.pid is None
    assert not (tmp_path / FILE).exists()


def test_by_hand_it_says_what_can_be_read_and_why_the_rest_cannot() -> None:
    done = subprocess.run([sys.executable, "-m", "mlperf_exp.telemetry"], capture_output=True, text=True, check=True)
    assert "this process: " in done.stdout
    for what, word in (("gpu", "GPU 0: "), ("cpu", "CPU packages: ")):
        assert f"{what}: not readable: " in done.stdout or word in done.stdout


def test_the_last_line_is_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert last_line(path) == {} == machine(path)
    path.write_text('{"interval_s": 0.5}\n{"ns": 1, "rss_mib": 5.0, "gpus": [{"w": 300.5, "memory_mib": 100, '
                    '"busy_percent": null}, {"w": null, "memory_mib": 20}]}\nnot json\n{"ns": 2, "rss_')  # fmt: skip
    assert last_line(path)["ns"] == 1
    assert machine(path) == {"power_w": 300.5, "gpu_memory_mib": 120.0, "memory_mib": 5.0}
