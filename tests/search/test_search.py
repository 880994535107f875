"""The search by the real LoadGen on a simulated system with a known capacity; killed, taken up, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.errors import UserError
from mlperf_exp.plan import make_plan

CAPACITY = 500.0  # 25 queries at a time, 50 ms each
WORDS = ["model=llama3_tiny", "backend=simulated", "backend.sigma=0.1", "backend.ttft_ms=5", "backend.tpot_ms=1",
         "backend.output_tokens=46", "backend.concurrency=25", "scenario=server", "scenario.ttft_ms=300",
         "scenario.min_duration_s=3", "search=max_qps", "division=open", "telemetry.enabled=false",
         "progress=false"]  # fmt: skip


def command(folder: Path, *words: str) -> list[str]:
    tracking = f"tracking.uri=sqlite:///{folder.parent}/mlflow.db"
    return [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={folder}", tracking, *WORDS, *words]


def search_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "search.json").read_text()))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search that was killed after its second probe, and then started again in its folder."""
    folder = tmp_path_factory.mktemp("search") / "run"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not (folder / "search.json").exists() or len(search_of(folder)["probes"]) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = search_of(folder)
    subprocess.run(command(folder), check=True, stdout=subprocess.DEVNULL, timeout=700)
    return folder, before


def test_a_killed_search_goes_on_from_its_probes(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, before = killed
    after = search_of(folder)
    assert not before["finished"]
    assert after["finished"]
    assert after["probes"][: len(before["probes"])] == before["probes"]
    assert len(after["probes"]) > len(before["probes"])


def test_the_rate_is_near_the_capacity_and_measured_in_full(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = killed
    result, found = json.loads((folder / "result.json").read_text()), search_of(folder)
    if found["confirmed_qps"] is None:
        pytest.fail(f"no full run was valid: {found['probes']}")
    # Another program on the host can only make the system look slower than it is.
    assert 0.5 * CAPACITY < found["confirmed_qps"] < 1.1 * CAPACITY
    assert result["plan"]["config"]["scenario"]["target_qps"] == found["confirmed_qps"]
    assert result["tests"]["performance"]["loadgen"]["effective_target_qps"] == pytest.approx(found["confirmed_qps"])
    assert result["tests"]["performance"]["loadgen"]["effective_min_duration_ms"] == 3000
    assert result["metrics"]["ttft_p99_ms"] <= 300
    assert result["search"] == found
    assert found["probes"][0]["valid"] is False  # all at once
    assert "over 300 ms" in found["probes"][0]["reason"]


def test_probes_are_child_runs_and_on_the_page(killed: tuple[Path, dict[str, Any]]) -> None:
    from mlflow.tracking import MlflowClient

    folder, _ = killed
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("mlperf_exp")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parent = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent[0].info.run_id]
    probes = search_of(folder)["probes"]
    assert len(parent) == 1
    assert sorted(run.data.metrics["target_qps"] for run in children) == sorted(p["target_qps"] for p in probes)
    assert {run.info.status for run in runs} == {"FINISHED"}
    page = (folder / "report.html").read_text()
    assert "Search for the highest valid rate" in page
    assert (folder / "plots" / "knee.png").exists()


def test_a_finished_search_and_one_of_another_plan_are_left_alone(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = killed
    again = subprocess.run(command(folder), capture_output=True, text=True)
    assert again.returncode == 2
    assert "already holds a result" in again.stderr
    other = folder.parent / "other"
    other.mkdir()
    (other / "search.json").write_text(json.dumps({**search_of(folder), "finished": False}))
    refused = subprocess.run(command(other, "scenario.ttft_ms=400"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is a search with another load" in refused.stderr
    (other / "search.json").write_text("{")
    broken = subprocess.run(command(other), capture_output=True, text=True)
    assert broken.returncode == 2
    assert "search.json cannot be read" in broken.stderr


@pytest.fixture
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("scenario=offline", "offline has no rate of arrivals"),
        ("scenario=single_stream", "single_stream has no rate of arrivals"),
        ("scenario.mode=accuracy", "accuracy has none"),
    ],
)
def test_scenarios_without_arrivals_are_refused(hydra: None, word: str, said: str) -> None:
    words = ["hw=h100", "backend=vllm", "scenario=server", "search=max_qps", word]
    with pytest.raises(UserError, match=said):
        make_plan(compose("config", words), Path("run"))
