"""Replicas on a Ray of several nodes: one that is lost, whatever way, is seen in time, and the run ends by itself."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clusters.ray_hosts import QUIET, RayHosts, ray_on_two_hosts
from tests.launchers.ended import wait_for
from tests.runs.runs_of_commands import SIMULATED, Finished, command
from tests.sut.golden import assert_golden

pytestmark = pytest.mark.skipif(
    os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="takes minutes: make test-replicas runs it"
)

SEEN_S = 5.0  # a loss is seen within this time
LOAD = [*SIMULATED, "scenario.target_qps=100", "scenario.min_duration_s=25", "hw=cpu", "progress=false"]


@dataclass(frozen=True)
class Nodes:
    """Several nodes on the loopback interface; ``processes`` are those of each, the head's first."""

    address: str
    processes: list[list[int]]
    env: dict[str, str]

    def family(self) -> list[int]:
        """All processes of all nodes."""
        firsts = [psutil.Process(pid) for node in self.processes for pid in node if psutil.pid_exists(pid)]
        return [child.pid for first in firsts for child in first.children(recursive=True)]

    def kill(self, node: int) -> None:
        """All of its processes, as when a machine dies: those that it started first, so that none is left behind."""
        for pid in self.processes[node]:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    child.kill()
        for pid in self.processes[node]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="rn-", dir="/tmp")  # sockets' paths must be short
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = {**os.environ, **QUIET, **token, "RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    words = [sys.executable, str(Path(__file__).parent / "ray_nodes.py"), str(count)]
    with (
        Path(f"{folder}.log").open("wb") as log,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env) as process,
    ):
        family = psutil.Process(process.pid)
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said, Path(f"{folder}.log").read_text()
            told = json.loads(said)
            yield Nodes(told["address"], told["processes"], {**os.environ, **token})
        finally:
            left = family.children(recursive=True)
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            for child in left:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.log").unlink()


@contextlib.contextmanager
def running(words: list[str], folder: Path, env: dict[str, str]) -> Iterator[Run]:
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent, env=env
    ) as process:
        try:
            yield Run(process, folder)
        finally:
            process.kill()


@dataclass(frozen=True)
class Run:
    """The command."""

    process: subprocess.Popen[str]
    folder: Path

    def measures(self) -> bool:
        """Whether queries have been completed."""
        assert self.process.poll() is None, self.process.communicate()
        path = self.folder / "live.jsonl"
        lines = path.read_text().splitlines()[:-1] if path.exists() else []
        return any(json.loads(line).get("completed", 0) > 0 for line in lines)

    def ended(self, timeout_s: float = 120) -> Finished:
        out, err = self.process.communicate(timeout=timeout_s)
        return Finished(self.process.returncode, out, err, self.folder)


def actors(pids: Iterable[int]) -> list[psutil.Process]:
    """The replicas among these processes."""
    found = []
    for pid in set(pids):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if "ray::Replica" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them lives."""
    return not actors(process.pid for process in processes if process.is_running())


def seen_after_s(folder: Path, hurt_at: float) -> list[float]:
    """How long after it each loss was noted, by the run's log."""
    lines = [
        line for line in (folder / "run.log").read_text().splitlines() if ": replica " in line and " was lost: " in line
    ]
    return [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() - hurt_at for line in lines]  # noqa: DTZ007


def assert_marked(done: Finished, hurt_at: float, replicas: int) -> dict[str, Any]:
    """One replica was seen to be lost in time; the rest ended the run, which is not valid."""
    assert done.status == 0, done.stderr
    result = done.result
    assert result["run"]["status"] == "finished"
    assert result["metrics"]["replicas_lost"] == 1
    assert not result["verdict"]["valid"]
    reasons = result["verdict"]["reasons"]
    assert any(f"1 of {replicas} replicas were lost on the way" in reason for reason in reasons), reasons
    test = result["tests"]["performance"]
    assert test["issued"] == test["completed"] + test["errors"] > 2000
    assert test["errors"] <= 5 * SEEN_S * 100 / replicas
    [after] = seen_after_s(done.folder, hurt_at)
    assert after < SEEN_S
    return result


def test_one_of_three_nodes_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = command(folder, *LOAD, "hw.nodes=3", "backend.replicas=3")
    with nodes(3) as cluster, running([*words, f"ray.address={cluster.address}"], folder, cluster.env) as run:
        wait_for(run.measures)
        replicas = actors(cluster.family())
        assert len(replicas) == 3
        hurt_at = time.time()
        cluster.kill(2)
        result = assert_marked(run.ended(), hurt_at, 3)
        wait_for(lambda: gone(replicas), 60)
    assert result["metrics"]["replicas"] == 3


@pytest.mark.vllm
def test_real_engines_on_two_nodes_give_the_answers_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    quick = ["experiment=quickstart", "tracking.enabled=false", "progress=false", "scenario.min_query_count=144"]
    words = command(folder, *quick, "scenario.target_qps=10", "hw.nodes=2", "backend.replicas=2")
    with nodes(2) as cluster, running([*words, f"ray.address={cluster.address}"], folder, cluster.env) as run:
        assert_golden(run.ended(400), 2, tmp_path)
        wait_for(lambda: not actors(cluster.family()), 60)


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    with ray_on_two_hosts("y") as made:
        yield made


def kill_replica(hosts: RayHosts) -> None:
    [replica] = actors(hosts.processes(hosts.worker))
    replica.kill()


def kill_node(hosts: RayHosts) -> None:
    hosts.kill(hosts.worker)


def kill_head(hosts: RayHosts) -> None:
    """Ray's part of it, with its replica; LoadGen is there too."""
    for pid in hosts.processes(hosts.head):
        with contextlib.suppress(psutil.Error):
            if any(part in " ".join(psutil.Process(pid).cmdline()) for part in ("gcs_server", "raylet", "ray::")):
                os.kill(pid, signal.SIGKILL)


def cut_cable(hosts: RayHosts) -> None:
    hosts.hosts.cut(hosts.worker)
    time.sleep(10)
    hosts.hosts.mend(hosts.worker)


@pytest.mark.parametrize("hurt", [kill_replica, cut_cable, kill_node, kill_head])
def test_on_ray_on_two_hosts(hosts: RayHosts, tmp_path: Path, hurt: Callable[[RayHosts], None]) -> None:
    folder = tmp_path / "run"
    words = command(folder, *LOAD, "hw.nodes=2", "backend.replicas=2", f"ray.address={hosts.gcs}")
    with running(hosts.words(hosts.head, *words), folder, hosts.env()) as run:
        wait_for(run.measures)
        replicas = actors([*hosts.processes(hosts.head), *hosts.processes(hosts.worker)])
        assert len(replicas) == 2
        hurt_at = time.time()
        hurt(hosts)
        assert_marked(run.ended(), hurt_at, 2)
        kept = json.loads((folder / "replicas" / "replicas.json").read_text())
        assert {row["node"] for row in kept["replicas"]} == {hosts.head, hosts.worker}
    wait_for(lambda: gone(replicas), 60)
    if hurt is kill_node:
        hosts.start_worker()
