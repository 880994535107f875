"""Keys that are planted in the environment are nowhere in what a run, a sweep, MLflow and a process list show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sut.openai_server import MODEL, Kind, Server

CANARY = "canary-7d1f0c55e2"
KEYS = {"OPENAI_API_KEY": f"{CANARY}-openai", "HF_TOKEN": f"{CANARY}-hf", "MLFLOW_TRACKING_USERNAME": f"{CANARY}-user",
        "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-mlflow", "VLLM_API_KEY": f"{CANARY}-vllm",
        "NCCL_AUTH_TOKEN": f"{CANARY}-nccl", "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws"}  # fmt: skip
SHORT = ["model=llama3_tiny", "scenario=server", "scenario.target_qps=50", "scenario.min_duration_s=1",
         "scenario.samples=20", "scenario.mode=performance"]  # fmt: skip


def watched(command: list[str], folder: Path) -> tuple[int, str]:
    """Run it; what it printed. No process of the machine may show the canary in its command line meanwhile."""
    with (folder.parent / f"{folder.name}.printed").open("w+") as out:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | KEYS, stdout=out, stderr=out)
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    assert CANARY.encode() not in path.read_bytes()
                except OSError:
                    continue
            time.sleep(0.5)
        out.seek(0)
        return process.returncode, out.read()


def shown_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_of_a_run_against_a_server(tmp_path: Path) -> None:
    with Server() as server:
        server.key, server.everything = KEYS["OPENAI_API_KEY"], Kind.GOOD
        words = [*SHORT, "backend=openai", f"backend.urls=[{server.url}]", f"backend.served_model={MODEL}"]
        status, printed = watched([sys.executable, "-m", "mlperf_exp", *words], tmp_path)
        server.key = "another"
        refused, complaint = watched([sys.executable, "-m", "mlperf_exp", *words], tmp_path)
    assert (status, refused) == (0, 2), printed + complaint
    assert "OPENAI_API_KEY" in complaint
    assert CANARY not in printed + complaint
    results = list(tmp_path.glob("outputs/runs/*/result.json"))
    assert len(results) == 1 and json.loads(results[0].read_text())["metrics"]["completed"] > 0
    assert (tmp_path / "outputs" / "mlflow.db").exists()
    assert not shown_in(tmp_path)


def test_of_a_sweep(tmp_path: Path) -> None:
    words = ["-m", *SHORT, "backend=simulated", "scenario.target_qps=40,60"]
    status, printed = watched([sys.executable, "-m", "mlperf_exp", *words], tmp_path)
    assert status == 0, printed
    assert CANARY not in printed
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/result.json"))) == 2
    assert not shown_in(tmp_path)


@pytest.mark.parametrize("word", ["tracking.uri=http://me:{}@host:5000", "backend.urls=[http://{}@host:8000]"])
def test_of_a_command_line_that_is_refused(tmp_path: Path, word: str) -> None:
    command = [sys.executable, "-m", "mlperf_exp", *SHORT, "backend=openai", word.format(CANARY)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert not shown_in(tmp_path)
