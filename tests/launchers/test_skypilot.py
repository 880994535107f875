"""The launcher ``skypilot``: tasks read by SkyPilot itself, the shipped one, sweeps on a SkyPilot without machines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Need
from hydra_plugins.mlperf_launchers._sky_client import Bridge
from hydra_plugins.mlperf_launchers._skypilot import SkypilotCluster
from hydra_plugins.mlperf_launchers._skypilot_config import SkypilotBackend, SkypilotLauncherConf
from hydra_plugins.mlperf_launchers._skypilot_task import ACCELERATORS

from mlperf_exp import network
from mlperf_exp.errors import UserError
from tests.launchers import fake_sky
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, quote
from tests.launchers.sky_environment import environment

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "gke-h100.sky.yaml"
# The command that docs/gke-h100.md gives, and whose dry run is shipped beside it.
COMMAND = [
    "hydra/launcher=skypilot",
    "model=llama3_tiny",
    "backend=simulated",
    "hw=2x8xh100",
    "scenario=server",
    "hydra.launcher.backend.infra=k8s",
    "hydra.launcher.backend.image=docker:us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpx/nccl-plugin-gpudirecttcpx",
    "hydra.launcher.secrets=[HF_TOKEN]",
]


@pytest.fixture(scope="session", name="sky")
def sky_() -> str:
    return environment()


def test_the_shipped_task_is_what_a_dry_run_prints() -> None:
    words = [sys.executable, "-m", "mlperf_exp", *COMMAND, "hydra.launcher.dryrun=true"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr
    printed = re.sub(r"mlperf-[0-9a-f]{8}-", "mlperf-00000000-", done.stdout)
    # Where this machine keeps the sweep and its MLflow: left out of the example.
    printed = re.sub(r'"env": \{"MLPERF_EXP_TRACK_LATER": ".*?\}"\}', '"env": {}', printed)
    if os.environ.get("MLPERF_WRITE_EXAMPLES") == "1":
        EXAMPLE.write_text(printed)
    assert printed == EXAMPLE.read_text()
    task = yaml.safe_load(printed)
    assert task["resources"] | {"image_id": ""} == {
        "infra": "k8s", "accelerators": "H100:8", "network_tier": "best", "image_id": "",
    }  # fmt: skip
    assert task["num_nodes"] == 2
    assert task["envs"].items() >= network.environment("gpudirect_tcpx", 2).items()
    assert task["secrets"] == {"HF_TOKEN": None}
    assert "uv venv" in task["setup"]
    assert ".[cuda]" in task["setup"]


@pytest.mark.timeout(900)  # the first time on a machine it is installed
def test_skypilot_reads_the_shipped_task_as_it_is_meant(
    sky: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # SkyPilot writes there
    bridge = Bridge(sky)
    try:
        meant = yaml.safe_load(EXAMPLE.read_text())
        read = bridge.ask("validate", task=EXAMPLE.read_text())
        assert read["resources"]["accelerators"] == {"H100": 8}
        assert read["resources"]["infra"] == "kubernetes"
        assert read["resources"]["network_tier"] == "best"
        assert read["num_nodes"] == 2
        assert read["run"] == meant["run"]
        assert read["envs"] == meant["envs"]
        with pytest.raises(Exception, match="acceleratorz"):
            bridge.ask("validate", task="resources: {acceleratorz: 1}")
    finally:
        bridge.close()


def task_of(need: Need, conf: SkypilotLauncherConf, **facts: str) -> dict[str, object]:
    spec = JobSpec(0, (), ("-m", "mlperf_exp"), Path("/sweep/0"), need, facts=facts)
    value: dict[str, object] = yaml.safe_load(SkypilotCluster(conf).render(Attempt(spec, 1, "u-0-1")))
    return value


def test_every_profile_of_a_gpu_has_a_name_in_skypilot() -> None:
    lines = [line for path in (ROOT / "conf/hw").glob("*.yaml") for line in path.read_text().splitlines()]
    assert {line.partition(": ")[2] for line in lines if line.startswith("gpu: ")} == set(ACCELERATORS)


def test_what_the_user_lays_over_wins_and_the_rest_stays() -> None:
    over = {"resources": {"cpus": "32+", "any_of": [{"use_spot": True}]}, "file_mounts": {"/data": "gs://bucket"}}
    backend = SkypilotBackend(infra="gcp", task=over, setup="", workdir=None)
    task = task_of(Need(gpus_per_node=1, gpu="NVIDIA A30", cpus=8), SkypilotLauncherConf(backend=backend))
    resources = {"infra": "gcp", "accelerators": "A30:1", "cpus": "32+", "any_of": [{"use_spot": True}]}
    assert task["resources"] == resources
    assert task["file_mounts"] == {"/data": "gs://bucket"}
    assert "setup" not in task
    assert "workdir" not in task


def test_an_unknown_gpu_and_a_missing_skypilot_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gpu_type"):
        task_of(Need(gpus_per_node=1, gpu="Strange GPU"), SkypilotLauncherConf())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="uv tool install"):
        SkypilotCluster(SkypilotLauncherConf()).find(Attempt(JobSpec(0, (), (), tmp_path), 1, "u"))


# ---- sweeps on a SkyPilot without machines


@pytest.fixture
def sweeper(tmp_path: Path) -> Sweeper:
    place = tmp_path / "fake"
    python = fake_sky.write(place)
    return Sweeper(
        tmp_path,
        [
            "hydra/launcher=skypilot",
            f"hydra.launcher.backend.python={python}",
            f"hydra.launcher.python={sys.executable}",
            "hydra.launcher.backend.workdir=null",
        ],
        {"RSYNC_RSH": str(place / "rsh"), "TOKEN": "from the shell"},
    )


def calls(sweeper: Sweeper) -> list[str]:
    return (sweeper.folder / "fake" / "calls").read_text().splitlines()


def test_values_arrive_results_are_fetched_and_clusters_go_down(sweeper: Sweeper) -> None:
    done = sweeper.run("+act=ok,exit", "+value=" + quote("".join(VALUES)), "hydra.launcher.secrets=[TOKEN]")
    assert done.ends() == ["finished", "failed"], done.said
    for number in (0, 1):
        assert done.seen(number)["value"] == "".join(VALUES)
        assert done.seen(number)["TOKEN"] == "from the shell"
    assert (done.folder / "0" / "big").stat().st_size == 100_000
    assert "[job 0/0] out of ok" in done.stdout
    assert "exit status 7: the reason" in done.stderr  # its own word: SkyPilot says 100
    assert "from the shell" not in done.said + (done.folder / "jobs.json").read_text()
    assert sorted(line.partition(" ")[0] for line in calls(sweeper)) == ["down", "down", "launch", "launch"]
    assert '"idle_minutes_to_autostop": 10, "down": true' in calls(sweeper)[0]


def test_no_machines_is_tried_again_on_a_new_cluster(sweeper: Sweeper) -> None:
    (sweeper.folder / "fake" / "no_machines").touch()
    done = sweeper.run("+act=ok")
    assert done.ends() == ["finished"], done.said
    [first, _] = done.jobs()[0]["attempts"]
    assert "no quota left" in first["reason"]


def test_an_interrupt_cancels_fetches_and_takes_down(sweeper: Sweeper) -> None:
    with sweeper.running("+act=slow") as process:
        wait_for(lambda: bool(list((sweeper.folder / "fake").glob("clusters/*/sky_workdir/outputs/runs/*/seen.json"))))
        process.send_signal(signal.SIGINT)
        done = sweeper.ended(process)
    assert done.status == 130
    assert done.ends() == ["interrupted"], done.said
    assert (done.folder / "0" / "kept").exists()
    assert [line.partition(" ")[0] for line in calls(sweeper)] == ["launch", "cancel", "down"]


def test_what_no_cloud_has_is_refused_before_anything_is_launched(sweeper: Sweeper) -> None:
    done = sweeper.run("+act=ok", "hydra.launcher.backend.accelerators=B200:8")
    assert done.status == 2
    assert "SkyPilot cannot place it: no cloud has B200:8" in done.stderr
    assert not (sweeper.folder / "fake" / "calls").exists()
