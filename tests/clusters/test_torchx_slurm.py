"""The launcher ``torchx`` with its scheduler ``slurm``, on a real Slurm of two hosts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.clusters.slurm import Slurm
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, quote

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="make test-clusters runs it"),
]


@pytest.fixture
def sweeper(slurm: Slurm, tmp_path: Path) -> Sweeper:
    settings = ["hydra/launcher=torchx", "hydra.launcher.backend.scheduler=slurm", "hydra.launcher.max_parallel=4"]
    return Sweeper(tmp_path, settings, {**slurm.environment, "PATH": os.environ["PATH"]})


def test_values_arrive_on_gpus_and_failures_are_told(slurm: Slurm, sweeper: Sweeper) -> None:
    gpu = ["hydra.launcher.resources.gpus_per_node=1", "hydra.launcher.resources.gpu_type=a30"]
    done = sweeper.run("+act=ok,exit", "+value=" + quote("".join(VALUES)), *gpu)
    assert done.ends() == ["finished", "failed"], done.said
    for number in (0, 1):
        assert done.seen(number)["value"] == "".join(VALUES)
        assert done.seen(number)["host"] in slurm.hosts
    assert "[job 0/0] out of ok" in done.stdout
    assert "exit status 7: the reason" in done.stderr


def test_two_hosts_see_one_world(slurm: Slurm, sweeper: Sweeper) -> None:
    done = sweeper.run("+act=pair", "hydra.launcher.resources.nodes=2", "hydra.launcher.run_on=each")
    assert done.ends() == ["finished"], done.said
    for rank, host in enumerate(slurm.hosts):
        assert f"[job 0/{rank}] out of pair on {host} rank {rank}" in done.stdout


def test_an_interrupt_cancels_and_a_job_cancelled_behind_the_back_fails(slurm: Slurm, sweeper: Sweeper) -> None:
    with sweeper.running("+act=slow_1,slow_2") as process:
        wait_for(lambda: all((sweeper.folder / f"sweep/{n}/seen.json").exists() for n in (0, 1)))
        slurm.ask("sbatch", "--wait", "--job-name=other-0", "--output=/dev/null", "--wrap=true")  # ends behind ours
        slurm.ask("scancel", sweeper.jobs()[0]["attempts"][0]["id"].rpartition("/")[2])
        wait_for(lambda: sweeper.jobs()[0]["status"] == "failed")
        process.send_signal(signal.SIGINT)
        done = sweeper.ended(process)
    assert done.ends() == ["failed", "interrupted"], done.said
    assert (done.folder / "1" / "kept").exists()
    assert not slurm.ask("squeue", "--noheader").strip()
