"""Two short runs by the real LoadGen against a server, made once; every test works on copies of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlperf_exp.submission import rules
from tests.sut.openai_server import Kind, Server

SAMPLES = 72  # the articles that come with the project
SYSTEM = {
    "system_id": "test-system",
    "status": "available",
    "system_name": "A test's machine",
    "host_processors_per_node": 1,
    "host_processor_core_count": 2,
    "host_memory_configuration": "none",
    "host_storage_capacity": "1 GB",
    "host_storage_type": "SSD",
    "host_networking": "N/A",
    "host_networking_topology": "N/A",
    "host_network_card_count": "N/A",
    "cooling": "air",
}
_SHORT = {
    "offline": ["scenario.target_qps=100", "scenario.min_query_count=72", "scenario.min_duration_s=0"],
    "server": ["scenario.target_qps=200", "scenario.min_duration_s=2", "scenario.min_query_count=504"],
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs ``offline`` and ``server``; the latter with its compliance test."""
    folder = tmp_path_factory.mktemp("made")
    with Server() as server:
        server.everything = Kind.GOOD
        for scenario, words in _SHORT.items():
            for _ in range(3):  # a busy machine may miss the server's latency bounds
                shutil.rmtree(folder / scenario, ignore_errors=True)
                command = [
                    sys.executable, "-m", "mlperf_exp", "model=llama3_tiny", "division=open", "backend=openai",
                    f"backend.urls=[{server.url}]", f"scenario={scenario}", *words, "compliance=on", "progress=false",
                    "tracking.uri=sqlite:///mlflow.db", f"hydra.run.dir={folder / scenario}",
                ]  # fmt: skip
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
                assert done.returncode == 0, done.stderr
                if "INVALID" not in (folder / scenario / "performance" / "mlperf_log_summary.txt").read_text():
                    break
    return folder


@pytest.fixture(autouse=True)
def small_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round's data set is as small as the tests': what is left against the runs is their duration."""
    small = replace(
        rules.BENCHMARKS["llama3.1-8b"], samples=SAMPLES, performance_samples=SAMPLES, offline_samples=SAMPLES
    )
    monkeypatch.setitem(rules.BENCHMARKS, "llama3.1-8b", small)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """Copies of the runs to change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


Change = Callable[[dict[str, Any]], None]


def change(run: Path, how: Change) -> Path:
    """Change a run's record."""
    path = run / "result.json"
    result = json.loads(path.read_text())
    how(result)
    path.write_text(json.dumps(result))
    return run


def make_valid(result: dict[str, Any]) -> None:
    """The verdict that a run of 600 s would have had: short runs are the only way to test what valid ones do."""
    result["verdict"] |= {"valid": True, "reasons": []}


@pytest.fixture
def valid(runs: Path) -> Path:
    for scenario in _SHORT:
        change(runs / scenario, make_valid)
    return runs


@pytest.fixture
def system(tmp_path: Path) -> Path:
    path = tmp_path / "system.yaml"
    path.write_text(json.dumps(SYSTEM))  # JSON is YAML
    return path
