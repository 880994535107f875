"""One real run, whose result the sweeps of these tests are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder of tests to the path


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the simulated system."""
    folder = tmp_path_factory.mktemp("real") / "run"
    subprocess.run(
        [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={folder}", "model=llama3_tiny", "backend=simulated",
         "scenario=server", "scenario.target_qps=500", "scenario.min_duration_s=1", "scenario.min_query_count=64",
         "scenario.mode=performance", "tracking.enabled=false", "progress=false", "telemetry.interval_s=0.1"],
        check=True, cwd=folder.parent,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def real(real_run: Path) -> dict[str, Any]:
    """Its result."""
    result: dict[str, Any] = json.loads((real_run / "result.json").read_text())
    return result
