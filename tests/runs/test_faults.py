"""What goes wrong in a run: one clear line, the right exit status, no hang, and all that was finished kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from runs_of_commands import SIMULATED, command, run

LONG = ["scenario.target_qps=200", "scenario.min_duration_s=300"]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    )


def wait_for(condition: Any, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def measured(folder: Path) -> int:
    """Queries completed so far, by the live log."""
    path = folder / "live.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["completed"]) if lines else 0


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def test_system_lost_in_the_middle(tmp_path: Path) -> None:
    done = run(tmp_path / "run", *SIMULATED, *LONG, "backend.fail_after=300", timeout_s=200)
    assert done.status == 1
    assert "told to fail" in done.last_line
    result = done.result
    assert result["run"]["status"] == "failed"
    assert result["verdict"]["valid"] is False
    assert result["metrics"]["completed"] >= 100
    table = pq.read_table(done.folder / "performance" / "queries.parquet").to_pandas()
    assert table["error"].isna().sum() == result["metrics"]["completed"]
    assert (done.folder / "report.html").exists()


def test_system_that_hangs(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(
        tmp_path / "run", *SIMULATED, *LONG, "backend.hang_after=300", "scenario.stall_timeout_s=3", timeout_s=60
    )
    assert done.status == 1
    assert "scenario.stall_timeout_s" in done.last_line
    assert time.monotonic() - began < 150  # and not the five minutes that the load was set to
    assert done.result["metrics"]["completed"] == 300


def test_offline_system_that_hangs(tmp_path: Path) -> None:
    overrides = [*SIMULATED, "scenario=offline", "scenario.min_duration_s=1", "scenario.min_query_count=2000"]
    done = run(tmp_path / "run", *overrides, "backend.hang_after=500", "scenario.stall_timeout_s=3", timeout_s=200)
    assert done.status == 1
    assert done.result["metrics"]["completed"] == 500


def test_errors_of_single_queries_are_counted_and_make_the_run_invalid(tmp_path: Path) -> None:
    short = ["scenario.target_qps=300", "scenario.min_duration_s=3", "backend.error_rate=0.05"]
    done = run(tmp_path / "run", *SIMULATED, *short)
    assert done.status == 0
    result = done.result
    assert 0 < result["metrics"]["errors"] < 0.2 * result["metrics"]["queries"]
    assert any("ended with an error" in reason for reason in result["verdict"]["reasons"])


def test_fail_on_invalid(tmp_path: Path) -> None:
    short = ["scenario.target_qps=100", "scenario.min_duration_s=1", "fail_on_invalid=true"]
    done = run(tmp_path / "run", *SIMULATED, *short)
    assert done.status == 3
    assert done.result["run"]["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = start(folder, *SIMULATED, *LONG)
    wait_for(lambda: measured(folder) > 200)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=150)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    result = result_of(folder)
    assert result["run"]["status"] == "interrupted"
    assert result["metrics"]["completed"] > 200
    assert result["verdict"]["valid"] is False


def test_killed_leaves_no_half_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, *SIMULATED, *LONG)
    wait_for(lambda: measured(folder) > 200)
    process.kill()
    process.wait(10)
    assert not (folder / "result.json").exists()
    again = run(tmp_path / "later", *SIMULATED, "scenario.target_qps=100", "scenario.min_duration_s=1")
    assert again.status == 0


def test_a_full_disk_fails_the_run_in_one_line(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root; CI is root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        done = run(small / "run", *SIMULATED, "scenario.target_qps=3000", "scenario.min_duration_s=5", timeout_s=200)
        assert done.status in (1, 2)
        assert "No space left" in done.last_line
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def engines(of: int) -> list[psutil.Process]:
    """The engine's processes below a run's process: the largest first."""
    try:
        children = psutil.Process(of).children(recursive=True)
        found = [p for p in children if "spawn_main" in " ".join(p.cmdline()) or "VLLM" in p.name()]
        return sorted(found, key=lambda p: -p.memory_info().rss)
    except psutil.Error:
        return []


@pytest.mark.vllm
def test_engine_killed_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "experiment=quickstart", *LONG, "tracking.enabled=false", "scenario.target_qps=8")
    wait_for(lambda: measured(folder) > 10, 700)
    killed = engines(process.pid)
    assert killed
    for engine in killed:
        engine.kill()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stderr
    assert "engine died" in stderr.strip().splitlines()[-1]
    result = result_of(folder)
    assert result["run"]["status"] == "failed"
    assert result["metrics"]["completed"] > 10


@pytest.mark.vllm
def test_ctrl_c_while_the_engine_starts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "experiment=quickstart", "tracking.enabled=false")
    wait_for(lambda: (folder / "engine.log").exists() and engines(process.pid))
    left = engines(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=150)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr.strip().splitlines()[-1]
    assert result_of(folder)["run"]["status"] == "interrupted"
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left), 90)


@pytest.mark.vllm
def test_no_engine_outlives_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "experiment=quickstart", *LONG, "tracking.enabled=false", "scenario.target_qps=8")
    wait_for(lambda: measured(folder) > 2, 700)
    left = engines(process.pid)
    assert left
    process.kill()
    process.wait(10)
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left), 90)
