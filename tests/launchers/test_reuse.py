"""One engine start for the jobs of a sweep, its record, and another start of it after kills; as real commands."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.launchers.ended import Ended, wait_for

QUICK = ["model=llama3_tiny", "backend=simulated", "scenario=server", "scenario.min_query_count=20",
         "scenario.min_duration_s=0.3", "dataset.samples=16", "tracking.enabled=false", "progress=false",
         "telemetry.enabled=false"]  # fmt: skip


class Swept(Ended):
    """A sweep that has ended."""

    @property
    def record(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        return value

    @property
    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.record["jobs"]
        return found

    def result(self, number: int) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / self.jobs[number]["folder"] / "result.json").read_text())
        return value


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "mlperf_exp", "-m", f"hydra.sweep.dir={folder}", *QUICK, *overrides]


def sweep(folder: Path, *overrides: str, timeout_s: float = 700) -> Swept:
    done = subprocess.run(
        command(folder, *overrides), capture_output=True, text=True, timeout=timeout_s, cwd=folder.parent
    )
    return Swept(done.returncode, done.stdout, done.stderr, folder)


@contextlib.contextmanager
def started(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(folder, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def record_of(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        value: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
        return value
    return {"jobs": []}


def running_job(folder: Path, number: int) -> bool:
    """Whether this job is in the middle of its measurement."""
    jobs = record_of(folder)["jobs"]
    return len(jobs) > number and jobs[number]["status"] == "running" and (folder / str(number) / "live.jsonl").exists()


def test_load_points_share_a_start_and_two_engines_do_not(tmp_path: Path) -> None:
    """Order, folders and results are as without sharing; scenarios with other rules share an engine, too."""
    done = sweep(tmp_path / "s", "scenario=server,offline", "backend.ttft_ms=5,8", "scenario.target_qps=100,200")
    assert done.status == 0, done.stderr
    assert [job["number"] for job in done.jobs] == list(range(8))
    assert [job["status"] for job in done.jobs] == ["finished"] * 8
    starters = {}
    for job in done.jobs:
        run, config = done.result(job["number"])["run"], done.result(job["number"])["plan"]["config"]
        assert run["overrides"][-1] == f"scenario.target_qps={job['own']['scenario.target_qps']}"
        starters.setdefault(config["backend"]["ttft_ms"], set()).add(run["engine_started_by"])
        assert ("start_s" in done.result(job["number"])["phases"]) == (run["engine_started_by"] == run["id"])
        # The rules that LoadGen reads for each scenario hold in a process that has run another one.
        loadgen = done.result(job["number"])["tests"]["performance"]["loadgen"]
        assert loadgen["requested_use_token_latencies"] is True
        assert loadgen["effective_sample_index_rng_seed"] > 0
        assert (done.folder / job["folder"] / "report.html").exists()
    assert all(len(found) == 1 for found in starters.values()), starters
    assert starters[5.0] != starters[8.0]
    ended = [json.loads((done.folder / str(i) / "result.json").read_text())["run"]["id"] for i in range(8)]
    assert ended == [f"s-{i}" for i in range(8)]


def test_reuse_can_be_turned_off(tmp_path: Path) -> None:
    done = sweep(tmp_path / "s", "scenario.target_qps=100,200", "hydra.launcher.reuse_engine=false")
    assert [done.result(i)["run"]["engine_started_by"] for i in (0, 1)] == ["s-0", "s-1"]


def test_a_job_that_fails_takes_no_other_along(tmp_path: Path) -> None:
    """The system is lost in job 1; the jobs behind it go on in a fresh process, and a new start tries job 1 once."""
    overrides = ["backend.fail_after=300", "scenario.min_query_count=20,400,30,40", "scenario.target_qps=400"]
    done = sweep(tmp_path / "s", *overrides)
    assert done.status == 1
    assert [job["status"] for job in done.jobs] == ["finished", "failed", "finished", "finished"]
    started_by = [done.result(i)["run"]["engine_started_by"] for i in range(4)]
    assert started_by == ["s-0", "s-0", "s-2", "s-2"]
    again = sweep(tmp_path / "s", *overrides)
    assert again.status == 1
    assert [job["earlier"] for job in again.jobs] == [True, False, True, True]
    assert again.jobs[1]["folder"] == "1.2"
    assert again.jobs[1]["attempt"] == 2
    assert "3 done (3 invalid)" in again.stderr
    third = sweep(tmp_path / "s", *overrides)
    assert third.status == 1
    assert "not tried again" in third.stderr
    assert not (tmp_path / "s" / "1.3").exists()


def test_killed_at_any_moment_it_loses_the_job_in_flight_only(tmp_path: Path) -> None:
    """First the job's process is killed, then the launcher; what had finished is not done again."""
    folder = tmp_path / "s"
    overrides = ["scenario.target_qps=100,101,102,103", "scenario.min_duration_s=5", "hydra.launcher.grace_s=5"]
    with started(folder, *overrides) as process:
        wait_for(lambda: running_job(folder, 1))
        second = subprocess.Popen(command(folder, *overrides), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        (worker,) = (p for p in psutil.Process(process.pid).children() if "_child" in " ".join(p.cmdline()))
        worker.kill()
        wait_for(lambda: running_job(folder, 2))
        said = second.communicate(timeout=60)[1]  # two sweeps writing one folder
        assert second.returncode == 2
        assert "hydra.sweep.dir: another sweep is writing to" in said
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    before = json.loads((folder / "0" / "result.json").read_text())["run"]
    done = sweep(folder, *overrides)
    assert done.status == 0, done.stderr
    assert [job["status"] for job in done.jobs] == ["finished"] * 4
    assert [job["earlier"] for job in done.jobs] == [True, False, False, False]
    assert [job["folder"] for job in done.jobs] == ["0", "1.2", "2.2", "3"]
    assert [job["attempt"] for job in done.jobs] == [1, 2, 1, 1]  # a job that the launcher's end stopped has not failed
    assert done.result(0)["run"] == before


def test_old_and_half_written_runs_are_named_and_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = sweep(folder, "scenario.target_qps=100,200")
    assert first.status == 0
    old = json.loads((folder / "0" / "result.json").read_text())
    (folder / "0" / "result.json").write_text(json.dumps({**old, "schema": 0}))
    (folder / "1" / "result.json").write_text('{"schema": 1, "ru')
    (folder / "sweep.json").write_text("{torn")
    done = sweep(folder, "scenario.target_qps=100,200")
    assert done.status == 0, done.stderr
    assert [job["folder"] for job in done.jobs] == ["0.2", "1.2"]
    assert "its result is of schema 0" in done.stderr
    assert "it holds no whole result" in done.stderr
    assert done.result(0)["run"]["id"] == "s-0.2"


def test_more_values_reuse_what_is_there(tmp_path: Path) -> None:
    sweep(tmp_path / "s", "scenario.target_qps=100,200")
    done = sweep(tmp_path / "s", "scenario.target_qps=50,100,200")
    assert [job["earlier"] for job in done.jobs] == [False, True, True]
    assert [done.result(i)["plan"]["config"]["scenario"]["target_qps"] for i in range(3)] == [50.0, 100.0, 200.0]
