"""The launcher ``torchx``: its local scheduler for real; what it would hand to Docker, Slurm and Volcano."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Need
from hydra_plugins.mlperf_launchers._torchx import TorchxCluster
from hydra_plugins.mlperf_launchers._torchx_config import Scheduler, TorchxBackend, TorchxLauncherConf

from mlperf_exp.errors import UserError
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, quote


@pytest.fixture
def local(tmp_path: Path) -> Sweeper:
    return Sweeper(tmp_path, ["hydra/launcher=torchx", "hydra.launcher.max_parallel=3"])


def test_values_arrive_and_results_come_in_order(local: Sweeper) -> None:
    awkward = "a, 'b'; $HOME \"c\""
    done = local.run(
        "+act=ok,exit",
        "+value=" + ",".join(map(quote, VALUES[:5])) + "," + quote("".join(VALUES[5:])),
        "+hydra.launcher.env.EXTRA=" + quote(awkward),
    )
    assert done.ends() == ["finished"] * 6 + ["failed"] * 6
    assert done.status == 1
    values = [*VALUES[:5], "".join(VALUES[5:])]
    for number in range(12):
        assert done.seen(number)["value"] == values[number % 6]
        assert done.seen(number)["EXTRA"] == awkward
    assert "[job 0/0] out of ok" in done.stdout
    assert "exit status 7: the reason" in done.stderr
    assert "    mlperf_exp: the reason" in done.stderr


def test_an_interrupt_ends_the_jobs(local: Sweeper) -> None:
    with local.running("+act=ok,slow_1,slow_2") as process:
        wait_for(lambda: all((local.folder / f"sweep/{n}/seen.json").exists() for n in (1, 2)))
        wait_for(lambda: local.jobs()[0]["status"] == "finished")
        process.send_signal(signal.SIGINT)
        done = local.ended(process)
    assert done.ends() == ["finished", "interrupted", "interrupted"]
    for number in (1, 2):
        assert (done.folder / str(number) / "kept").exists()
        assert not psutil.pid_exists(done.seen(number)["pid"])
    assert done.status == 130


def test_a_job_killed_behind_its_back_fails_and_hides_no_other(local: Sweeper) -> None:
    with local.running("+act=slow,ok") as process:
        seen = local.folder / "sweep" / "0" / "seen.json"
        wait_for(lambda: seen.exists() and bool(seen.read_text()))
        node = psutil.Process(json.loads(seen.read_text())["pid"]).parent()
        assert node is not None
        os.killpg(node.pid, signal.SIGKILL)
        done = local.ended(process)
    assert done.ends() == ["failed", "finished"]
    assert done.status == 1


def test_two_replicas_see_one_world(local: Sweeper) -> None:
    nodes = ["hydra.launcher.resources.nodes=2", "hydra.launcher.run_on=each"]
    done = local.run("+act=pair", *nodes)
    assert done.status == 0, done.stderr
    assert re.search(r"\[job 0/0\] out of pair on \S+ rank 0\n", done.stdout)
    assert re.search(r"\[job 0/1\] out of pair on \S+ rank 1\n", done.stdout)
    assert done.seen(0)["WORLD_SIZE"] == "2"


# ---- what would be submitted

SPEC = JobSpec(
    number=3,
    overrides=("x=1",),
    arguments=("-m", "mlperf_exp", "x='$HOME, ${y}; \"z\"'"),
    folder=Path("/sweep/3"),
    need=Need(nodes=2, gpus_per_node=1, gpu_type="a30", cpus=4, memory_gib=16),
)
ATTEMPT = Attempt(SPEC, 1, "mlperf-0a1b2c3d-3-1")


def cluster(scheduler: Scheduler, secrets: tuple[str, ...] = (), **backend: Any) -> TorchxCluster:
    return TorchxCluster(
        TorchxLauncherConf(secrets=list(secrets), backend=TorchxBackend(scheduler=scheduler, **backend))
    )


def request_of(text: str) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads(text)
    assert value["command"][2:4] == ["mlperf_exp", SPEC.arguments[2]]
    assert "$" not in text  # TorchX, Kubernetes and shells would take it for theirs
    return value


def test_a_volcano_job_is_named_spread_and_given_what_it_needs() -> None:
    text = cluster(
        Scheduler.kubernetes,
        secrets=("HF_TOKEN",),
        secret="tokens",
        image="registry/mlperf:1",
        cfg={"queue": "gpus", "namespace": "bench"},
        pod={"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}},
        mounts=["type=volume,src=data,dst=/data,readonly"],
    ).render(ATTEMPT)
    job = yaml.safe_load(text)
    assert job["metadata"]["name"] == ATTEMPT.uid
    assert job["spec"]["queue"] == "gpus"
    tasks = job["spec"]["tasks"]
    assert [task["replicas"] for task in tasks] == [1, 1]
    for rank, task in enumerate(tasks):
        pod = task["template"]["spec"]
        [container] = pod["containers"]
        env = {item["name"]: item for item in container["env"]}
        assert env["MLPERF_EXP_RANK"]["value"] == str(rank)
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "tokens", "key": "HF_TOKEN"}
        assert request_of(env["MLPERF_EXP_REQUEST"]["value"])["nodes"] == 2
        assert container["image"] == "registry/mlperf:1"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["command"][-1] == "--handback"
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        assert {volume["name"] for volume in pod["volumes"]} >= {"mount-0"}
        assert len(f"{ATTEMPT.uid}-{task['name']}-0") <= 63


def test_slurm_runs_it_once_with_the_right_gpus_in_its_folder() -> None:
    text = cluster(Scheduler.slurm, cfg={"partition": "gpu"}, sbatch={"exclusive": "user"}).render(ATTEMPT)
    assert text.startswith("sbatch --parsable --chdir=/sweep/3")
    assert "--no-requeue" in text
    assert " --requeue" not in text
    assert text.count(":a30:1") + text.count("=a30:1") == 2
    assert "--partition=gpu" in text
    assert "--exclusive=user" in text
    assert "/sweep/3/request.json" in text
    assert f"--job-name={ATTEMPT.uid}-1" in text


def test_containers_get_the_request_and_no_dry_run_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_value")
    text = cluster(Scheduler.local_docker, ("HF_TOKEN",), image="mlperf:1").render(ATTEMPT)
    assert "MLPERF_EXP_REQUEST" in text
    assert "nano_cpus: 4000000000" in text
    assert "HF_TOKEN: <from the environment>" in text
    assert "hf_value" not in text


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (cluster(Scheduler.kubernetes, cfg={"queue": "q"}), "hydra.launcher.backend.image"),
        (cluster(Scheduler.kubernetes, image="x"), "hydra.launcher.backend.cfg"),
        (cluster(Scheduler.local_cwd, mounts=["src=/x"]), "hydra.launcher.backend.mounts"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_queued(made: TorchxCluster, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made.preflight([SPEC])


def test_a_missing_program_and_a_missing_docker_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="Slurm's sbatch is not on this machine"):
        cluster(Scheduler.slurm).preflight([SPEC])
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    with pytest.raises(UserError, match="no Docker answers"):
        cluster(Scheduler.local_docker, image="x").preflight([SPEC])
