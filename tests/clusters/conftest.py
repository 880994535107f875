"""Real clusters on this machine, for the tests that ``make test-clusters`` runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from k8s import Kubernetes, missing


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """A real Kubernetes control plane with two nodes of one pretend A30 each; the same for all tests of a session."""
    if os.environ.get("MLPERF_TEST_CLUSTERS") != "1":
        pytest.skip("starts a Kubernetes control plane, which make test-clusters builds and runs")
    if why := missing():
        pytest.skip(f"no Kubernetes control plane here: {why}")
    number = os.getpid() % 250 + 1
    cluster = Kubernetes(tmp_path_factory.mktemp("kubernetes"), f"k{number}n", f"10.98.{number}")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
