"""The launcher ``slurm`` on a real Slurm of two hosts: what jobs get, and what happens when parts of the cluster fail.

Jobs are small applications of Hydra, so that a test takes seconds; one is a whole run of mlperf_exp.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.slurm import Slurm
from tests.launchers.remote_app import HEAD

pytestmark = pytest.mark.timeout(900)

APP = (
    HEAD
    + """@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "EXTRA", "TOKEN", "CUDA_VISIBLE_DEVICES")
    seen = {name: os.environ.get(name) for name in names}
    seen |= {"act": cfg.act, "host": socket.gethostname(), "num": HydraConfig.get().job.num}
    rank = os.environ.get("RANK", "0")
    try:
        part = folder / f".seen.{rank}"
        part.write_text(json.dumps(seen))
        part.rename(folder / f"seen.{rank}.json")
        print(f"I am {cfg.act}", flush=True)
        if cfg.act == "sleep":
            time.sleep(600)
    except KeyboardInterrupt:
        (folder / "kept").touch()
        sys.exit(130)
    while cfg.act == "wait" and not Path("released").exists():
        time.sleep(0.1)
    if cfg.act == "fail":
        for i in range(50):
            print(f"line {i}")
        sys.exit(1)
    if cfg.act == "again" and folder.name == "2":
        sys.exit(75)
    if cfg.act == "fill":
        with (folder / "data").open("wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    return {"act": cfg.act, "host": socket.gethostname()}


try:
    main()
except ExperimentError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_status)
"""
)


@pytest.fixture
def app(slurm: Slurm, tmp_path: Path) -> Iterator[App]:
    made = App(slurm, tmp_path)
    yield made
    made.close()


class App:
    """Sweeps of the small application, as commands in a folder of their own."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder, self.sweep = slurm, folder, folder / "a sweep, 100%"
        (folder / "app.py").write_text(APP)
        self.environment = {
            **os.environ,
            **slurm.environment,
            "COLUMNS": "200",
            "TOKEN": "secret-token",
            "HYDRA_FULL_ERROR": "1",
        }
        self._started: list[subprocess.Popen[str]] = []

    def release(self) -> None:
        """Let the jobs that wait go on."""
        (self.folder / "released").touch()

    def start(self, *words: str, script: tuple[str, ...] = ("app.py",)) -> subprocess.Popen[str]:
        launcher = ["-m", "hydra/launcher=slurm", f"hydra.sweep.dir='{self.sweep}'", "hydra.launcher.grace_s=20",
                    "hydra.launcher.backend.exclusive=false", "hydra.launcher.resources.gpus_per_node=0"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, *script, *launcher, *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: str, timeout_s: float = 300) -> tuple[int, str]:
        process = self.start(*words)
        out, _ = process.communicate(timeout=timeout_s)
        return process.returncode, out

    def command(self, verb: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "mlperf_exp.jobs", verb, str(self.sweep)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=800, check=False)
        return done.returncode, done.stdout + done.stderr

    def jobs(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError):
            value: list[dict[str, Any]] = json.loads((self.sweep / "jobs.json").read_text())["jobs"]
            return value
        return []

    def seen(self, folder: str, rank: int = 0) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.sweep / folder / f"seen.{rank}.json").read_text())
        return value

    def runs(self, *folders: str) -> bool:
        return all((self.sweep / folder / "seen.0.json").exists() for folder in folders)

    def left(self) -> str:
        """The jobs that the cluster still has."""
        return self.slurm.ask("squeue", "--noheader", "--states=pending,running", "--format=%A %T")

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.slurm.ask("scancel", "--user=root")
        until(lambda: not self.slurm.ask("squeue", "--noheader"))
        self.slurm.settle()


def until(ready: Callable[[], object], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.1)


def test_jobs_come_back_in_order_with_their_logs(app: App) -> None:
    status, out = app.run("+act=ok,fail,again", "hydra.launcher.secrets=[TOKEN]")
    assert status == 1
    assert [job["status"] for job in app.jobs()] == ["finished", "failed", "finished"]
    assert [one["attempt"] for one in app.jobs()[2]["attempts"]] == [1, 2]
    seen = app.seen("0")
    host = seen["host"]
    assert host in app.slurm.hosts
    assert (seen["num"], seen["TOKEN"]) == (0, "secret-token")
    assert f"[job 0/{host}] I am ok" in out
    assert [line.strip() for line in out.splitlines() if line.startswith("    line ")] == [
        f"line {i}" for i in range(10, 50)
    ]
    assert (app.sweep / "1" / f"node-0-{app.seen('1')['host']}.log").read_text().count("line ") == 50
    ours = [path for path in app.sweep.rglob("*") if path.is_file() and not path.name.startswith("seen.")]
    assert len(ours) > 15
    assert not [path for path in ours if b"secret-token" in path.read_bytes()]


def test_values_arrive_as_they_are(app: App) -> None:
    nasty = "a b'c\"d,e;f$HOME `g` \\h\ni=[j] {k} é %x #l !m"
    quoted = nasty.replace("\\", "\\").replace("'", "\\'")
    status, out = app.run(f"+act='{quoted}'", f"+hydra.launcher.env.EXTRA='{quoted}'")
    assert status == 0, out
    assert app.seen("0")["act"] == nasty
    assert app.seen("0")["EXTRA"] == nasty


def test_several_nodes_get_torchruns_environment(app: App) -> None:
    status, out = app.run(
        "+act=ok", "hydra.launcher.resources.nodes=2", "hydra.launcher.resources.gpus_per_node=1",
        "hydra.launcher.resources.gpu_type=a30", "hydra.launcher.run_on=each",
    )  # fmt: skip
    assert status == 0, out
    ranks = [app.seen("0", rank) for rank in range(2)]
    assert [(rank["RANK"], rank["WORLD_SIZE"], rank["host"]) for rank in ranks] == [
        (str(i), "2", host) for i, host in enumerate(app.slurm.hosts)
    ]
    assert {rank["MASTER_ADDR"] for rank in ranks} == {app.slurm.hosts[0]}
    assert len({rank["MASTER_PORT"] for rank in ranks}) == 1
    assert all(rank["CUDA_VISIBLE_DEVICES"] == "0" for rank in ranks)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hydra.launcher.backend.partition=none", "backend.partition: there is no partition none. Allowed: gpu, shut"),
        ("hydra.launcher.resources.gpus_per_node=9", "hydra.launcher.resources"),
        ("hydra.launcher.backend.gres=gpu:h100:1", "There is: gpu: 2 nodes of 4 CPUs and gpu:a30:1"),
        (
            "hydra.launcher.timeout_s=90000",
            "hydra.launcher.timeout_s: 90000 s is longer than a job may take in partition gpu. Give at most 7200",
        ),
        ("hydra.launcher.resources.nodes=3", "There is: gpu: 2 nodes of 4 CPUs and gpu:a30:1"),
        ("hydra.launcher.secrets=[NO_SUCH]", "hydra.launcher.secrets: NO_SUCH is not set here. Set it: export NO_SUCH"),
        ("hydra.launcher.backend.sbatch=[--nonsense]", "hydra.launcher.backend.sbatch: Slurm refuses the job"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_queued(app: App, word: str, told: str) -> None:
    status, out = app.run("+act=ok,ok", word)
    assert status != 0
    assert told in " ".join(out.split())
    assert not app.jobs()
    assert not app.slurm.ask("squeue", "--noheader")


def test_a_dry_run_prints_what_can_be_submitted_by_hand(app: App) -> None:
    status, out = app.run("+act=ok", "hydra.launcher.dryrun=true", "hydra.launcher.resources.cpus=2")
    assert status == 0
    assert not app.jobs()
    assert "#SBATCH --cpus-per-task=2\n" in out
    (app.sweep / "0").mkdir(parents=True)
    script = app.folder / "by_hand.sbatch"
    script.write_text(out[out.index("#!/bin/bash") :])
    app.slurm.ask("sbatch", "--wait", str(script))
    assert app.seen("0")["act"] == "ok"


def test_a_node_that_dies_costs_an_attempt(app: App) -> None:
    process = app.start("+act=wait")
    until(lambda: app.runs("0"))
    host = app.seen("0")["host"]
    app.slurm.lose(host)
    until(lambda: len(app.jobs()[0]["attempts"]) == 2)
    app.slurm.node(host)
    app.release()
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 0, out
    [first, second] = app.jobs()[0]["attempts"]
    assert "lost its node" in first["reason"]
    assert second["state"] == "finished"
    assert app.seen("0.2")["act"] == "wait"
    app.slurm.settle()


def test_a_job_cancelled_behind_its_back_has_failed(app: App) -> None:
    process = app.start("+act=sleep,ok")
    until(lambda: app.runs("0", "1"))
    app.slurm.ask("scancel", app.jobs()[0]["attempts"][0]["id"])
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 1
    assert "job 0 was cancelled by somebody else" in out
    assert [job["status"] for job in app.jobs()] == ["failed", "finished"]
    assert len(app.jobs()[0]["attempts"]) == 1
    assert (app.sweep / "0" / "kept").exists()


def test_the_controller_may_be_away(app: App) -> None:
    """For 30 s: the running jobs end in the meantime, and those that wait are submitted afterwards."""
    process = app.start("+act=wait,ok", "hydra.launcher.max_parallel=1")
    until(lambda: app.runs("0"))
    app.slurm.kill("slurmctld", signal.SIGKILL)
    app.release()
    time.sleep(30)
    app.slurm.controller()
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 0, out
    assert [len(job["attempts"]) for job in app.jobs()] == [1, 1]


def test_a_queue_that_never_starts(app: App) -> None:
    status, out = app.run(
        "+act=ok", "hydra.launcher.queue_timeout_s=4", "hydra.launcher.backend.sbatch=['--begin=now+1hour']"
    )
    assert status == 1
    assert "waited longer than hydra.launcher.queue_timeout_s=4.0 s: BeginTime" in out
    until(lambda: not app.left())


def test_a_killed_launcher_is_taken_over(app: App) -> None:
    process = app.start("+act=wait,ok,fail", "hydra.launcher.max_parallel=1")
    until(lambda: app.runs("0"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    status, out = app.command("list")
    assert status == 0
    assert "nobody watches them now" in out
    assert " running " in out
    app.release()
    status, out = app.command("attach")
    assert status == 1, out
    assert [job["status"] for job in app.jobs()] == ["finished", "finished", "failed"]
    assert all(len(job["attempts"]) == 1 for job in app.jobs())
    assert out.count("finished") >= 2


def test_cancel_from_another_terminal(app: App) -> None:
    process = app.start("+act=sleep,sleep")
    until(lambda: app.runs("0", "1"))
    status, out = app.command("cancel")
    assert status == 0, out
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 130, said
    assert not app.left()
    assert (app.sweep / "0" / "kept").exists()


def test_ctrl_c_cancels_everything(app: App) -> None:
    process = app.start("+act=sleep,sleep,sleep,sleep,sleep,sleep,sleep,sleep,sleep,sleep")
    until(lambda: len(list(app.sweep.glob("*/seen.0.json"))) >= 3)
    time.sleep(3)  # the rest waits in the queue
    begun = {path.parent for path in app.sweep.glob("*/seen.0.json")}
    assert len(begun) < 10
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=800)
    assert process.returncode == 130, out
    assert not app.left()
    assert {job["status"] for job in app.jobs()} == {"interrupted"}
    assert all((folder / "kept").exists() for folder in begun)


def test_a_full_disk_is_named(app: App) -> None:
    app.sweep = app.slurm.small / "a sweep"
    status, out = app.run("+act=fill,ok", "hydra.launcher.max_parallel=1")
    assert status == 1
    assert "No space left on device" in out
    assert "mlperf_exp: job 0 failed" in out
    shutil.rmtree(app.sweep)


def test_a_whole_run(app: App) -> None:
    """Without ``-m``: the launcher sets Hydra's mode."""
    command = [sys.executable, "-m", "mlperf_exp", "hydra/launcher=slurm", f"hydra.sweep.dir='{app.sweep}'",
               "model=llama3_tiny", "backend=simulated", "scenario=offline", "scenario.min_duration_s=0",
               "scenario.min_query_count=1", "scenario.samples=64", "scenario.mode=performance"]  # fmt: skip
    done = subprocess.run(
        command, cwd=app.folder, env=app.environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((app.sweep / "0" / "result.json").read_text())
    assert result["run"]["status"] == "finished"
    assert "finished" in done.stdout


def test_the_doctor_looks_at_both_nodes_and_the_way_between(app: App) -> None:
    command = [sys.executable, "-m", "mlperf_exp.doctor", "hydra/launcher=slurm", f"hydra.sweep.dir='{app.sweep}'",
               "hw=cpu", "hw.nodes=2", "seconds=1", "hydra.launcher.backend.exclusive=false"]  # fmt: skip
    done = subprocess.run(
        command, cwd=app.folder, env=app.environment, capture_output=True, text=True, timeout=600, check=False
    )
    report = json.loads((app.sweep / "0" / "doctor.json").read_text())
    assert done.returncode == (0 if report["passed"] else 1), done.stdout + done.stderr
    looked: dict[str, set[str]] = {}
    for check in report["checks"]:
        looked.setdefault(check["node"], set()).add(check["name"])
    for host in app.slurm.hosts:
        assert {"first node's name", "port reach", "latency", "bandwidth", "clock offset"} <= looked[host]
    assert looked["all"] == {"all-reduce"}
    [reduced] = [check for check in report["checks"] if check["name"] == "all-reduce"]
    assert reduced["status"] == "pass", reduced
    assert "by gloo, 2 processes" in reduced["found"]
    assert "by gloo, 2 processes" in done.stdout  # the table, with the node's prefix
