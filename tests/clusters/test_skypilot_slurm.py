"""The launcher ``skypilot`` on a real Slurm of two hosts, through SkyPilot's own slurm infra."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import sky, slurm
from tests.clusters.hosts import unused
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, quote
from tests.launchers.sky_environment import environment

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="make test-clusters runs it"),
]


@pytest.fixture(scope="module")
def testbed() -> Iterator[tuple[slurm.Slurm, dict[str, str], str]]:
    if why := slurm.missing() or sky.missing():
        pytest.skip(f"no Slurm for SkyPilot here: {why}")
    python, number = environment(), unused("y")
    with tempfile.TemporaryDirectory(prefix="sky", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with sky.slurm_for_sky(Path(folder), python, f"y{number}n", f"10.94.{number}") as (cluster, env):
            yield cluster, env, python


@pytest.fixture
def sweeper(testbed: tuple[slurm.Slurm, dict[str, str], str], tmp_path: Path) -> Sweeper:
    _, env, python = testbed
    settings = [
        "hydra/launcher=skypilot", f"hydra.launcher.backend.python={python}", f"hydra.launcher.python={sys.executable}",
        "hydra.launcher.backend.infra=slurm/testbed", "hydra.launcher.resources.cpus=1",
        "hydra.launcher.resources.memory_gib=1", "hydra.launcher.secrets=[TOKEN]",
    ]  # fmt: skip
    return Sweeper(tmp_path, settings, {**env, "TOKEN": "secret-token"})


def taken_down(cluster: slurm.Slurm) -> None:
    """SkyPilot is content with a job that Slurm has begun to end."""
    wait_for(lambda: not cluster.ask("squeue", "--noheader").strip(), 60)


def test_two_jobs_one_of_which_fails(testbed: tuple[slurm.Slurm, dict[str, str], str], sweeper: Sweeper) -> None:
    cluster = testbed[0]
    done = sweeper.run("+act=ok,exit", "+value=" + quote("".join(VALUES)), timeout_s=1500)
    assert done.ends() == ["finished", "failed"], done.said
    for number in (0, 1):
        seen = done.seen(number)
        assert (seen["value"], seen["TOKEN"]) == ("".join(VALUES), "secret-token")
        assert seen["host"] in cluster.hosts
    assert (done.folder / "0" / "big").stat().st_size == 100_000  # back by rsync
    assert "[job 0/0] out of ok" in done.stdout
    assert "exit status 7: the reason" in done.stderr
    taken_down(cluster)


def test_two_nodes_are_one_world(testbed: tuple[slurm.Slurm, dict[str, str], str], sweeper: Sweeper) -> None:
    cluster = testbed[0]
    nodes = ["hydra.launcher.resources.nodes=2", "hydra.launcher.run_on=each"]
    done = sweeper.run("+act=ok", *nodes, timeout_s=1500)
    assert done.status == 0, done.said
    hosts = {host for host in cluster.hosts if f"out of ok on {host} rank" in done.stdout}
    assert hosts == set(cluster.hosts)
    assert {f"rank {rank}" in done.stdout for rank in (0, 1)} == {True}
    taken_down(cluster)


def test_an_interrupt_takes_everything_down(testbed: tuple[slurm.Slurm, dict[str, str], str], sweeper: Sweeper) -> None:
    cluster = testbed[0]
    with sweeper.running("+act=slow_1") as process:
        wait_for(lambda: any("running" in one["state"] for job in sweeper.jobs() for one in job["attempts"]), 900)
        process.send_signal(signal.SIGINT)
        done = sweeper.ended(process, 600)
    assert done.status == 130, done.said
    assert done.ends() == ["interrupted"]
    taken_down(cluster)
