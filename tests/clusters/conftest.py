"""Real clusters on this machine, the same for all tests of a session.

Slurm is started for every run of the tests; the Kubernetes control plane for ``make test-clusters``, which builds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol, TypeVar

import pytest

from tests.clusters import k8s, slurm
from tests.clusters.hosts import unused


class Cluster(Protocol):
    """What is brought up for tests, and taken down after them, however they end."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


C = TypeVar("C", bound=Cluster)


@contextlib.contextmanager
def started(cluster: C) -> Iterator[C]:
    """The cluster, up."""
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session", name="slurm")
def slurm_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """A real Slurm of two hosts with one pretend A30 each."""
    if why := slurm.missing():
        pytest.skip(f"no Slurm can be started here: {why}")
    number = unused("s")
    with started(slurm.Slurm(tmp_path_factory.mktemp("slurm"), f"s{number}n", f"10.97.{number}")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[k8s.Kubernetes]:
    """A real Kubernetes control plane with two nodes of one pretend A30 each."""
    if os.environ.get("MLPERF_TEST_CLUSTERS") != "1":
        pytest.skip("starts a Kubernetes control plane, which make test-clusters builds and runs")
    if why := k8s.missing():
        pytest.skip(f"no Kubernetes control plane here: {why}")
    number = unused("k")
    with started(k8s.Kubernetes(tmp_path_factory.mktemp("kubernetes"), f"k{number}n", f"10.98.{number}")) as cluster:
        yield cluster
