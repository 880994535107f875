"""The launcher ``ray`` on a real Ray of two hosts (network namespaces) with token authentication."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Need
from hydra_plugins.mlperf_launchers._ray import RayCluster
from hydra_plugins.mlperf_launchers._ray_config import RayBackend, RayLauncherConf

from tests.clusters.ray_hosts import RayHosts, ray_on_two_hosts
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, needs_root, quote


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    with ray_on_two_hosts("r") as made:
        yield made


@pytest.fixture
def sweeper(hosts: RayHosts, tmp_path: Path) -> Sweeper:
    return Sweeper(
        tmp_path,
        [
            "hydra/launcher=ray",
            f"hydra.launcher.backend.address={hosts.address}",
            f"hydra.launcher.backend.node_dir={tmp_path}/there",
            f"hydra.launcher.python={sys.executable}",
            "hydra.launcher.max_parallel=4",
        ],
        hosts.env(),
    )


SECOND = "+hydra.launcher.backend.entrypoint_resources.second=1"


@needs_root
def test_values_arrive_results_come_back_and_failures_are_told(sweeper: Sweeper) -> None:
    done = sweeper.run("+act=ok", "+value=" + quote("".join(VALUES)), "+hydra.launcher.env.EXTRA=" + quote("a, $HOME"))
    assert done.ends() == ["finished"], done.said
    assert done.seen(0)["value"] == "".join(VALUES)
    assert done.seen(0)["EXTRA"] == "a, $HOME"
    assert (done.folder / "0" / "big").stat().st_size == 100_000  # by the log alone
    assert "[job 0/0] out of ok" in done.stdout
    assert "@mlperf_exp:files" not in done.said
    assert not list((sweeper.folder / "there").iterdir())


@needs_root
def test_a_job_on_two_hosts_and_one_stopped_behind_the_launchers_back(hosts: RayHosts, sweeper: Sweeper) -> None:
    nodes = ["hydra.launcher.resources.nodes=2", "hydra.launcher.run_on=each"]
    done = sweeper.run("+act=ok", *nodes)
    assert done.ends() == ["finished"], done.said
    assert (done.seen(0)["WORLD_SIZE"], done.seen(0)["RANK"]) == ("2", "0")
    addresses = {hosts.head: f"{hosts.subnet}.1", hosts.worker: f"{hosts.subnet}.2"}
    assert done.seen(0)["MASTER_ADDR"] == addresses.pop(done.seen(0)["host"])  # Ray chooses which of them is the first
    [other] = addresses
    assert f"[node 1] out of ok on {other} rank 1" in done.stdout
    with sweeper.running("+act=slow,ok") as process:
        wait_for(lambda: [one["state"] for job in sweeper.jobs()[:1] for one in job["attempts"]] == ["running"])
        name = sweeper.jobs()[0]["attempts"][0]["id"]
        hosts.on(hosts.head, "job", "stop", "--address", hosts.address, name)
        done = sweeper.ended(process)
    assert done.ends() == ["failed", "finished"], done.said
    assert done.status == 1


@needs_root
def test_an_interrupt_stops_what_runs_and_brings_what_it_kept(sweeper: Sweeper) -> None:
    with sweeper.running("+act=slow", SECOND) as process:
        wait_for(lambda: bool(list((sweeper.folder / "there").glob("*/seen.json"))))
        process.send_signal(signal.SIGINT)
        done = sweeper.ended(process)
    assert done.status == 130
    assert done.ends() == ["interrupted"], done.said
    assert (done.folder / "0" / "kept").exists()


@needs_root
def test_a_lost_node_is_a_fault_of_the_machines_and_the_job_runs_again(hosts: RayHosts, sweeper: Sweeper) -> None:
    with sweeper.running("+act=slow", SECOND, "hydra.launcher.retries.max=1") as process:
        wait_for(lambda: bool(list((sweeper.folder / "there").glob("*/seen.json"))))
        hosts.kill(hosts.worker)
        wait_for(lambda: [len(job["attempts"]) for job in sweeper.jobs()] == [2], 100)
        hosts.start_worker()
        wait_for(lambda: len(list((sweeper.folder / "there").glob("*-2/seen.json"))) == 1, 100)
        process.send_signal(signal.SIGTERM)
        done = sweeper.ended(process)
    [job] = done.jobs()
    assert job["attempts"][0]["state"] == "lost", done.said
    assert (sweeper.folder / "sweep" / "0.2" / "kept").exists()


@needs_root
def test_a_wrong_token_and_a_job_that_no_node_can_hold_are_refused(hosts: RayHosts, sweeper: Sweeper) -> None:
    done = sweeper.run("+act=ok", "hydra.launcher.resources.gpus_per_node=1")
    assert "hydra.launcher.resources: job 0 wants CPU 1, GPU 1; of the 2 nodes of" in done.stderr
    assert done.status == 2
    assert not done.folder.exists() or not (done.folder / "jobs.json").exists()
    wrong = Sweeper(sweeper.folder, sweeper._settings, {**hosts.env(), "RAY_AUTH_TOKEN": "00" * 32})
    done = wrong.run("+act=ok")
    assert "RAY_AUTH_TOKEN: the Ray cluster does not take this token" in done.stderr
    assert done.status == 2


def test_no_cluster_at_that_address_is_told(tmp_path: Path) -> None:
    done = Sweeper(tmp_path, ["hydra/launcher=ray", "hydra.launcher.backend.address=http://127.0.0.1:9"]).run("+act=ok")
    assert done.status == 2
    assert "ray does not answer" in done.stderr


def test_what_is_submitted_holds_no_dollar_and_no_word_of_the_job_in_the_shells_line() -> None:
    arguments = ("app.py", "x='$HOME; ${y} `id`'")
    spec = JobSpec(0, (), arguments, Path("/sweep/0"), Need(gpus_per_node=2, gpu_type="A30", cpus=8, memory_gib=4))
    text = RayCluster(RayLauncherConf(backend=RayBackend(address="http://head:8265"))).render(Attempt(spec, 1, "u-0-1"))
    asked = json.loads(text)
    assert asked["submission_id"] == "u-0-1"
    assert asked["entrypoint_num_gpus"] == 2
    assert asked["entrypoint_num_cpus"] == 8
    assert asked["entrypoint_memory"] == 4 * 2**30
    assert asked["entrypoint_resources"] == {"accelerator_type:A30": 0.001}
    request = asked["runtime_env"]["env_vars"]["MLPERF_EXP_REQUEST"]
    assert "$" not in request
    assert json.loads(request)["command"][1:3] == list(arguments)
    assert "HOME" not in asked["entrypoint"]


def test_a_missing_ray_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "ray"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('no ray here')")
    done = Sweeper(tmp_path, ["hydra/launcher=ray"], {"PYTHONPATH": str(tmp_path)}).run("+act=ok")
    assert 'pip install "mlperf-exp[ray]"' in done.stderr
    assert done.status == 2
