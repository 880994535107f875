"""The launcher ``kubernetes`` on a real control plane, faults included: ``make test-clusters``.

Each sweep is a command of its own, as a user would start it, with jobs that write down what they saw.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.k8s import Kubernetes

NASTY = "a b,c;d'e\"f$HOME`id`\n${h}\\é%*"
APP = """
import json, os, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from mlperf_exp.errors import ExperimentError, InvalidResult, UserError

os.environ["HYDRA_FULL_ERROR"] = "1"  # as mlperf_exp sets it: errors reach the caller


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    seen = {"value": cfg.get("value"), "extra": os.environ.get("EXTRA"), "token": os.environ.get("TOKEN"),
            "host": os.uname().nodename, "argv": sys.argv}
    (folder / "seen.json").write_text(json.dumps(seen))
    act, _, number = str(cfg.act).partition("_")
    print(f"begin {cfg.act}", flush=True)
    if act == "lines":
        for i in range(int(number)):
            print(f"line {i}", flush=True)
            time.sleep(0.1)
    if act == "sleep":
        try:
            time.sleep(float(number))
        except KeyboardInterrupt:
            (folder / "kept").write_text("kept")
            raise
    if act == "exit":
        os._exit(int(number))
    if act == "invalid":
        raise InvalidResult("the run is not valid: too slow")
    if act == "user":
        raise UserError("a.key", "is wrong", "Mend it")
    if act == "fill":
        with (folder / "data").open("wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    if act == "memory":
        held = bytearray(int(number) << 20)
        time.sleep(60)
    return {"act": cfg.act}


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        print(f"mlperf_exp: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
"""


@dataclass(frozen=True)
class Sweeps:
    """Commands against the cluster, in a folder."""

    cluster: Kubernetes
    folder: Path

    def command(self, *overrides: str) -> list[str]:
        fixed = ["-m", "hydra/launcher=kubernetes", "hydra.launcher.backend.image=local:1", "hydra.sweep.dir=sweep"]
        fixed += [f"hydra.launcher.python={sys.executable}", "hydra.sweep.subdir=${hydra.job.num}"]
        return [sys.executable, str(self.folder / "app.py"), *fixed, *overrides]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig), "HYDRA_FULL_ERROR": "1"}

    def run(self, *overrides: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*overrides), capture_output=True, text=True, timeout=timeout, cwd=self.folder,
            env=self.environment(),
        )  # fmt: skip

    @contextlib.contextmanager
    def running(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        with (self.folder / "out").open("w") as out:
            process = subprocess.Popen(
                self.command(*overrides), stdout=out, stderr=out, text=True, cwd=self.folder, env=self.environment()
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    def until(self, true: Callable[[], Any], what: str, seconds: float = 200) -> None:
        self.cluster.until(true, f"{what}\n{self.out}", seconds)

    def seen(self, number: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "sweep" / number / "seen.json").read_text())
        return value

    def left(self) -> list[str]:
        """What of the launcher's is still there."""
        names = self.cluster.kubectl("get", "jobs,pods,configmaps,services", "-l", "mlperf-exp/uid", "-o", "name")
        return names.split()

    def ends(self) -> list[str]:
        jobs = json.loads((self.folder / "sweep" / "jobs.json").read_text())["jobs"]
        return [job["status"] for job in jobs]


@pytest.fixture
def sweeps(kubernetes: Kubernetes, tmp_path: Path) -> Iterator[Sweeps]:
    (tmp_path / "app.py").write_text(APP)
    made = Sweeps(kubernetes, tmp_path)
    yield made
    for kind in ("jobs", "pods"):
        kubernetes.kubectl("delete", kind, "-l", "mlperf-exp/uid", "--force", "--grace-period=0", "--wait=false")


def test_results_logs_and_failures_of_all_jobs_come_back_in_order(sweeps: Sweeps) -> None:
    done = sweeps.run("+act=lines_3,exit_7,invalid,user,memory_400", "hydra.launcher.resources.memory_gib=0.3")
    assert done.returncode == 1, done.stderr
    assert sweeps.ends() == ["finished", "failed", "finished", "failed", "failed"]
    rows = re.findall(r"^ *(\d)  \+act=\S+ +(finished|failed) ", done.stdout, re.MULTILINE)
    assert rows == [("0", "finished"), ("1", "failed"), ("2", "finished"), ("3", "failed"), ("4", "failed")]
    host = sweeps.seen("0")["host"]
    assert host in sweeps.cluster.nodes
    for i in range(3):
        assert f"[job 0/{host}] line {i}\n" in done.stdout
    assert (sweeps.folder / "sweep" / "0" / f"node.{host}.log").read_text().splitlines()[:2] == [
        "begin lines_3",
        "line 0",
    ]
    assert json.loads((sweeps.folder / "sweep" / "0" / "return.json").read_text()) == {"act": "lines_3"}
    assert "job 1 failed with exit status 7" in done.stderr
    assert "OOMKilled" in done.stderr and "hydra.launcher.resources.memory_gib" in done.stderr
    assert "a.key: is wrong. Mend it" in done.stderr
    assert "@mlperf_exp:files" not in done.stdout + done.stderr
    assert sweeps.left() == []


def test_values_environment_and_secrets_arrive_unchanged(sweeps: Sweeps) -> None:
    sweeps.cluster.kubectl("create", "secret", "generic", "tokens", "--from-literal=TOKEN=s3cret $x")
    sweeps.cluster.kubectl("create", "serviceaccount", "runner")
    quoted = "'" + NASTY.replace("'", "\\'").replace("${", "\\${") + "'"
    done = sweeps.run(
        "+act=x", f"+value={quoted}", "+hydra.launcher.env.EXTRA=\"e x;$y\"", "hydra.launcher.secrets=[TOKEN]",
        "hydra.launcher.backend.secret=tokens", "hydra.launcher.backend.service_account=runner",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = sweeps.seen("0")
    assert (seen["value"], seen["extra"], seen["token"]) == (NASTY, "e x;$y", "s3cret $x")
    assert not [
        path
        for path in (sweeps.folder / "sweep").rglob("*.json")
        if path.name != "seen.json" and "s3cret" in path.read_text()
    ]


def test_an_image_that_does_not_exist_fails_soon_with_one_reason(sweeps: Sweeps) -> None:
    began = time.monotonic()
    done = sweeps.run("+act=x", "hydra.launcher.backend.image=missing/image:1")
    assert done.returncode == 1 and time.monotonic() - began < 150
    assert re.search(r"job 0 can never start: \w+: .*missing/image:1.*not found", done.stderr), done.stderr
    assert sweeps.left() == []


def test_a_job_that_never_starts_is_ended_with_the_scheduler_s_reason(sweeps: Sweeps) -> None:
    pod = "hydra.launcher.backend.pod={spec: {nodeSelector: {nowhere: x}}}"
    done = sweeps.run("+act=x", "hydra.launcher.queue_timeout_s=4", pod)
    assert done.returncode == 1
    assert re.search(
        r"job 0 waited longer than hydra.launcher.queue_timeout_s=4.0 s: Unschedulable: 0/2 nodes", done.stderr
    )
    assert sweeps.left() == []


def test_a_time_limit_keeps_what_there_was(sweeps: Sweeps) -> None:
    done = sweeps.run("+act=sleep_200", "hydra.launcher.timeout_s=20")
    assert done.returncode == 1 and "took longer than hydra.launcher.timeout_s=20.0 s" in done.stderr, done.stderr
    assert (sweeps.folder / "sweep" / "0" / "kept").exists()
    assert sweeps.left() == []


def test_a_job_deleted_behind_the_launcher_s_back_is_told_and_not_repeated(sweeps: Sweeps) -> None:
    with sweeps.running("+act=sleep_600,lines_2") as process:
        sweeps.until(lambda: "begin sleep_600" in sweeps.out, "the job's first line")
        uid = json.loads((sweeps.folder / "sweep" / "jobs.json").read_text())["jobs"][0]["attempts"][0]["id"]
        sweeps.cluster.kubectl("delete", "job", uid, "--wait=false")
        assert process.wait(200) == 1
    assert "job 0 was cancelled by somebody else: its Job was deleted" in sweeps.out
    assert sweeps.ends() == ["failed", "finished"]
    assert (sweeps.folder / "sweep" / "0" / "kept").exists()  # the log was followed to its end
    assert sweeps.left() == []


def test_a_pod_that_is_evicted_is_tried_again_in_a_folder_of_its_own(sweeps: Sweeps) -> None:
    with sweeps.running("+act=sleep_6") as process:
        sweeps.until(lambda: (sweeps.folder / "out").exists() and "begin sleep_6" in sweeps.out, "the job's first line")
        for name in sweeps.cluster.nodes:
            (sweeps.cluster.folder / name / "evict").touch()
        assert process.wait(250) == 0, sweeps.out
    assert re.search(r"job 0 was preempted: Evicted on \S+: The node was low on resource", sweeps.out)
    assert "attempt 2 of 3" in sweeps.out
    assert (sweeps.folder / "sweep" / "0.2" / "seen.json").exists()
    for name in sweeps.cluster.nodes:
        (sweeps.cluster.folder / name / "evict").unlink(missing_ok=True)


def test_a_full_disk_is_named(sweeps: Sweeps) -> None:
    """The jobs' folders on the node are on a disk of 8 MiB."""
    small = (
        "hydra.launcher.backend.pod={spec: {volumes: [{name: small, emptyDir: {sizeLimit: 8Mi}}], "
        "containers: [{name: job, volumeMounts: [{name: small, mountPath: /tmp/mlperf_exp}]}]}}"
    )
    done = sweeps.run("+act=fill,lines_3", "hydra.launcher.max_parallel=1", small)
    assert done.returncode == 1, done.stderr
    assert sweeps.ends() == ["failed", "finished"]
    assert "No space left on device" in done.stdout + done.stderr
    assert "job 0 failed (exit status 1), but left no status.json" in done.stderr
    assert "is its disk full?" in done.stderr
    assert len(json.loads((sweeps.folder / "sweep" / "jobs.json").read_text())["jobs"][0]["attempts"]) == 1
    assert sweeps.left() == []


def test_a_node_that_dies_costs_an_attempt_on_another_one(sweeps: Sweeps) -> None:
    with sweeps.running("+act=sleep_12", "hydra.launcher.backend.node_lost_s=3") as process:
        sweeps.until(lambda: "begin sleep_12" in sweeps.out, "the job's first line")
        dead = str(re.search(r"runs on (\S+)", sweeps.out)[1])  # type: ignore[index]
        i = sweeps.cluster.nodes.index(dead)
        sweeps.cluster.kill_node(i)
        try:
            assert process.wait(280) == 0, sweeps.out
        finally:
            sweeps.cluster.start_node(i)
    assert f"the node {dead} does not answer any more" in sweeps.out
    assert json.loads((sweeps.folder / "sweep" / "0.2" / "seen.json").read_text())["host"] != dead
    ready = lambda: sweeps.cluster.kubectl("get", "nodes", "--no-headers").count(" Ready") == 2  # noqa: E731
    sweeps.cluster.until(ready, "both nodes are back")


def test_an_api_server_that_is_away_for_half_a_minute_costs_nothing(sweeps: Sweeps) -> None:
    with sweeps.running("+act=lines_600") as process:  # 60 s
        sweeps.until(lambda: "line 20\n" in sweeps.out, "some lines")
        sweeps.cluster.stop_api()
        time.sleep(30)
        sweeps.cluster.start_api()
        assert process.wait(280) == 0, sweeps.out
    assert "no answer about the jobs' states" in sweeps.out and "answers again" in sweeps.out
    host = sweeps.seen("0")["host"]
    log = (sweeps.folder / "sweep" / "0" / f"node.{host}.log").read_text().splitlines()
    assert log == ["begin lines_600", *(f"line {i}" for i in range(600))]  # none lost, none twice
    assert sweeps.left() == []


def test_ctrl_c_ends_every_job_keeps_what_they_have_and_leaves_nothing(sweeps: Sweeps) -> None:
    with sweeps.running("+act=sleep_601,sleep_602,sleep_603", "hydra.launcher.max_parallel=2") as process:
        sweeps.until(lambda: sweeps.out.count("] begin sleep") == 2, "two jobs run")
        process.send_signal(signal.SIGINT)
        process.wait(200)
    assert process.returncode != 0
    assert sweeps.ends() == ["interrupted", "interrupted", "not started"], sweeps.out
    assert all((sweeps.folder / "sweep" / str(i) / "kept").exists() for i in (0, 1))
    assert sweeps.left() == []


def test_a_launcher_that_was_killed_is_taken_over(sweeps: Sweeps) -> None:
    with sweeps.running("+act=lines_60,exit_7") as process:
        sweeps.until(lambda: "] line 10\n" in sweeps.out, "some lines")
        process.kill()
        process.wait()
    attach = [sys.executable, "-m", "mlperf_exp.jobs", "attach", "sweep"]
    done = subprocess.run(
        attach, capture_output=True, text=True, timeout=250, cwd=sweeps.folder, env=sweeps.environment()
    )
    assert done.returncode == 1, done.stderr
    assert sweeps.ends() == ["finished", "failed"]
    log = next((sweeps.folder / "sweep" / "0").glob("node.*.log")).read_text()
    assert "line 0\n" in log and "line 59\n" in log
    assert json.loads((sweeps.folder / "sweep" / "0" / "return.json").read_text()) == {"act": "lines_60"}
    assert sweeps.left() == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["hydra.launcher.backend.image="], "hydra.launcher.backend.image: names no image"),
        (["hydra.launcher.backend.namespace=nowhere"], "there is no namespace 'nowhere'"),
        (["hydra.launcher.resources.gpus_per_node=2"], "wants 2 nvidia.com/gpu on a node, and the largest"),
        (
            ["hydra.launcher.resources.gpus_per_node=1", "hydra.launcher.resources.gpu_type=NVIDIA-H200"],
            "there are NVIDIA-A30",
        ),
        (["hydra.launcher.resources.nodes=2"], "before Indexed|Indexed Jobs came with 1.22"),
        (["hydra.launcher.backend.queue=a30"], "Kueue is not installed"),
        (["hydra.launcher.backend.volumes=[{path: /data, claim: nothing}]"], "no PersistentVolumeClaim 'nothing'"),
        (["hydra.launcher.secrets=[A]", "hydra.launcher.backend.secret=nothing"], "there is no Secret 'nothing'"),
        (["hydra.launcher.backend.context=other"], "hydra.launcher.backend.kubeconfig: no way to the cluster"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_created(sweeps: Sweeps, overrides: list[str], told: str) -> None:
    done = sweeps.run("+act=x", *overrides)
    assert done.returncode == 2, done.stderr
    assert re.search(told, done.stderr), done.stderr
    assert sweeps.left() == [] and not (sweeps.folder / "sweep" / "jobs.json").exists()


def test_an_account_without_rights_is_told_which_it_lacks(sweeps: Sweeps) -> None:
    config = sweeps.cluster.folder / "kubeconfig.nobody"
    done = sweeps.run(
        "+act=x", f"hydra.launcher.backend.kubeconfig={config}", "hydra.launcher.backend.namespace=default"
    )
    assert done.returncode == 2
    assert "your account may not create jobs, delete jobs, list jobs, list pods" in done.stderr


def test_the_rights_that_the_guide_gives_are_enough(sweeps: Sweeps) -> None:
    """``docs/a30-cluster.md``: its namespace and its Role, for an account that has nothing else."""
    page = Path(__file__, "../../../docs/a30-cluster.md").resolve().read_text()
    role = re.search(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert role is not None
    kubectl = sweeps.cluster.kubectl
    kubectl("create", "namespace", "mlperf")
    try:
        assert "created" in kubectl("apply", "-f", "-", text=role[1])
        kubectl("create", "rolebinding", "runner", "--role=mlperf-exp", "--user=nobody", "-n", "mlperf")
        done = sweeps.run(
            "+act=lines_3,exit_7", f"hydra.launcher.backend.kubeconfig={sweeps.cluster.folder / 'kubeconfig.nobody'}",
            "hydra.launcher.backend.namespace=mlperf",
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert sweeps.ends() == ["finished", "failed"]
        assert (sweeps.folder / "sweep" / "0" / "return.json").exists()
        assert not kubectl("get", "jobs,pods,configmaps", "-n", "mlperf", "-l", "mlperf-exp/uid", "-o", "name")
    finally:
        kubectl("delete", "namespace", "mlperf", "--wait=false")


def test_a_dry_run_prints_what_kubectl_can_apply(sweeps: Sweeps) -> None:
    done = sweeps.run("+act=lines_1", "hydra.launcher.dryrun=true")
    assert done.returncode == 0 and sweeps.left() == []
    applied = subprocess.run(
        ["kubectl", f"--kubeconfig={sweeps.cluster.kubeconfig}", "apply", "--validate=false", "-f", "-"],
        input=done.stdout, text=True, capture_output=True,
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr
    path = "jsonpath={.items[*].status.succeeded}"
    get = ("get", "jobs", "-l", "mlperf-exp/uid", "-o", path)
    sweeps.cluster.until(lambda: sweeps.cluster.kubectl(*get) == "1", "the job that was applied by hand has finished")


def test_the_doctor_looks_at_a_node_from_inside_a_pod(sweeps: Sweeps) -> None:
    command = [
        sys.executable, "-m", "mlperf_exp.doctor", "hydra/launcher=kubernetes", "hw=cpu", "seconds=1",
        "hydra.launcher.backend.image=local:1", f"hydra.launcher.python={sys.executable}", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=sweeps.folder, env=sweeps.environment()
    )
    report = json.loads((sweeps.folder / "sweep" / "0" / "doctor.json").read_text())
    assert done.returncode == (0 if report["passed"] else 1), done.stdout + done.stderr
    [node] = report["nodes"]
    assert node in sweeps.cluster.nodes
    assert {"GPUs", "disk space", "own name"} <= {check["name"] for check in report["checks"]}
    assert f"[job 0/{node}] " in done.stdout
    assert not sweeps.left()
