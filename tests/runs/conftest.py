"""The quick start, run once for all tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder of tests to the path

from runs_of_commands import Finished, run


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What ``make demo`` does: real LoadGen, real vLLM, real MLflow; and TEST06."""
    return run(tmp_path_factory.mktemp("demo") / "run", "experiment=quickstart", "compliance=on")
