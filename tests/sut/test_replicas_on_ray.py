"""Replicas that are actors of a real Ray of the run's own, on this machine: the whole command."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launchers.ended import wait_for
from tests.runs.runs_of_commands import SIMULATED, Finished, command, run
from tests.sut.golden import assert_golden

clusters = pytest.mark.skipif(
    os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="takes minutes: make test-replicas runs it"
)

TWO = [*SIMULATED, "backend.replicas=2", "progress=false"]
PARTS = ("raylet", "gcs_server", "ray::", "mlperf_exp.sut.replicas.placement")


def sessions() -> set[Path]:
    """Folders that a Ray may have left."""
    return {*Path("/tmp").glob("mx-*"), *Path("/tmp/ray").glob("session_*")}


class Family:
    """All processes that ever came from one, kept while they are looked at."""

    def __init__(self, pid: int) -> None:
        self._first = psutil.Process(pid)
        self.known: set[psutil.Process] = set()

    def look(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.known |= set(self._first.children(recursive=True))

    def named(self, *words: str) -> list[psutil.Process]:
        """Those that live, and whose command line holds one of the words."""
        self.look()
        found = []
        for process in self.known:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and any(word in _line(process) for word in words):
                    found.append(process)
        return found

    def listens(self) -> set[str]:
        """The addresses at which they listen."""
        self.look()
        found = set()
        for process in [self._first, *self.known]:
            with contextlib.suppress(psutil.Error):
                for each in process.net_connections("inet"):
                    if each.status == psutil.CONN_LISTEN:
                        found.add(each.laddr.ip.removeprefix("::ffff:"))
        return found


def _line(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) or process.name()


@contextlib.contextmanager
def started(folder: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], Family]]:
    """The command, and what comes from it; at the end nothing of that may live, and no folder be left."""
    before = sessions()
    with subprocess.Popen(
        command(folder, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    ) as process:
        family = Family(process.pid)
        try:
            yield process, family
            wait_for(lambda: not family.named(""), 60)
            wait_for(lambda: sessions() <= before, 20)
        finally:
            process.kill()
            for left in family.named(""):
                left.kill()


def completed(folder: Path) -> bool:
    path = folder / "live.jsonl"
    return path.exists() and any('"completed": 0' not in line for line in path.read_text().splitlines())


def ended(process: subprocess.Popen[str], folder: Path, timeout_s: float = 200) -> Finished:
    out, err = process.communicate(timeout=timeout_s)
    return Finished(process.returncode, out, err, folder)


def test_a_run_over_two_actors_ends_well_stays_on_loopback_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = ("scenario.target_qps=200", "scenario.min_duration_s=2", "scenario.min_query_count=400")
    with started(folder, *TWO, *short) as (process, family):
        wait_for(lambda: completed(folder), 200)
        actors = family.named("ray::Replica")
        addresses = family.listens()
        done = ended(process, folder)
    assert done.status == 0, done.stderr
    assert len(actors) == 2
    assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    result = done.result
    metrics = result["metrics"]
    assert result["run"]["status"] == "finished"
    assert (metrics["replicas"], metrics["replicas_lost"], metrics["retried"], metrics["errors"]) == (2, 0, 0, 0)
    assert metrics["replica_share_min"] > 0.5
    assert result["tests"]["performance"]["issued"] == result["tests"]["performance"]["completed"] > 100


@clusters
def test_a_killed_actor_is_lost_and_the_run_goes_on_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("scenario.target_qps=100", "scenario.min_duration_s=10")
    with started(folder, *TWO, *words) as (process, family):
        wait_for(lambda: completed(folder), 200)
        family.named("ray::Replica")[0].send_signal(signal.SIGKILL)
        done = ended(process, folder)
    assert done.status == 0, done.stderr
    verdict, metrics = done.result["verdict"], done.result["metrics"]
    assert metrics["replicas_lost"] == 1
    assert not verdict["valid"]
    assert any("1 of 2 replicas were lost on the way" in reason for reason in verdict["reasons"])


@clusters
def test_replicas_go_on_without_rays_head_and_the_run_says_so(tmp_path: Path) -> None:
    """For a minute: so long their node looks for it."""
    folder = tmp_path / "run"
    with started(folder, *TWO, "scenario.target_qps=100", "scenario.min_duration_s=10") as (process, family):
        wait_for(lambda: completed(folder), 200)
        for part in family.named("ray/gcs/gcs_server"):
            part.kill()
        done = ended(process, folder)
    assert done.status == 0, done.stderr
    assert done.result["metrics"]["replicas_lost"] == 0
    assert "Ray was lost on the way: Ray's own process " in json.dumps(done.result["verdict"])


@clusters
def test_without_a_replica_the_run_ends_as_failed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(folder, *TWO, "scenario.target_qps=100", "scenario.min_duration_s=60") as (process, family):
        wait_for(lambda: completed(folder), 200)
        began = time.monotonic()
        for part in family.named("ray/gcs/gcs_server", "raylet/raylet"):
            part.kill()
        done = ended(process, folder, 60)
    assert time.monotonic() - began < 40
    assert done.status == 1
    assert "no replica is left: replica " in done.last_line


@clusters
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_takes_ray_with_it(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    before = sessions()
    with subprocess.Popen(
        command(folder, *TWO, "scenario.target_qps=100", "scenario.min_duration_s=60"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder.parent,
    ) as process:
        family = Family(process.pid)
        wait_for(lambda: completed(folder), 200)
        assert family.named("ray::Replica")
        process.send_signal(number)
        process.wait(60)
        wait_for(lambda: not family.named(""), 40)
    assert sessions() <= before


@clusters
@pytest.mark.vllm
def test_two_real_engines_give_the_answers_of_one(tmp_path: Path) -> None:
    words = ["experiment=quickstart", "tracking.enabled=false", "progress=false", "scenario.min_query_count=144"]
    done = run(tmp_path / "run", *words, "backend.replicas=2", "scenario.target_qps=10")
    assert_golden(done, 2, tmp_path)
