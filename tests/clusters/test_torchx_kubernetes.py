"""The launcher ``torchx`` on a real API server, with what a launcher sees of Volcano."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.k8s import Kubernetes
from tests.launchers.ended import wait_for
from tests.launchers.remote_app import VALUES, Sweeper, quote

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="make test-clusters runs it"),
]


def sweeper(kubernetes: Kubernetes, folder: Path) -> Sweeper:
    settings = [
        "hydra/launcher=torchx", "hydra.launcher.backend.scheduler=kubernetes", "hydra.launcher.max_parallel=4",
        "hydra.launcher.backend.image=local:1", "+hydra.launcher.backend.cfg={queue: default, namespace: default}",
        f"hydra.launcher.python={sys.executable}", "hydra.launcher.secrets=[TOKEN]",
        "hydra.launcher.backend.secret=volcano-tokens",
    ]  # fmt: skip
    return Sweeper(folder, settings, {"KUBECONFIG": str(kubernetes.kubeconfig)})


def test_without_volcano_it_is_refused(kubernetes: Kubernetes, tmp_path: Path) -> None:
    done = sweeper(kubernetes, tmp_path).run("+act=ok")
    assert done.status != 0
    assert "this cluster has no Volcano" in done.stderr
    assert "hydra/launcher=kubernetes" in done.stderr


@pytest.fixture(scope="module")
def volcano(kubernetes: Kubernetes) -> Iterator[object]:
    from tests.clusters.volcano import DEFINITION, Volcano

    kubernetes.kubectl("create", "secret", "generic", "volcano-tokens", "--from-literal=TOKEN=secret-token")
    controller = Volcano(kubernetes)
    try:
        yield controller
    finally:
        controller.stop()
        kubernetes.kubectl("delete", "crd", DEFINITION["metadata"]["name"])  # type: ignore[index]
        kubernetes.kubectl("delete", "secret", "volcano-tokens")


def test_jobs_run_and_come_back(kubernetes: Kubernetes, volcano: object, tmp_path: Path) -> None:
    done = sweeper(kubernetes, tmp_path).run("+act=ok,exit", "+value=" + quote("".join(VALUES)), timeout_s=600)
    assert done.ends() == ["finished", "failed"], done.said
    for number in (0, 1):
        seen = done.seen(number)
        assert (seen["value"], seen["TOKEN"]) == ("".join(VALUES), "secret-token")
        assert seen["host"] in kubernetes.nodes
    assert (done.folder / "0" / "big").stat().st_size == 100_000  # handed back by the log
    assert "[job 0/0] out of ok" in done.stdout
    assert "exit status 7: the reason" in done.stderr
    assert not volcano.list()  # type: ignore[attr-defined]


def test_an_interrupt_aborts_and_removes(kubernetes: Kubernetes, volcano: object, tmp_path: Path) -> None:
    sweeps = sweeper(kubernetes, tmp_path)
    with sweeps.running("+act=slow_1,slow_2") as process:
        # A pod's log says more than its phase: by then the job has begun.
        wait_for(lambda: kubernetes.kubectl("logs", "-l", "volcano.sh/job-name").count("out of slow_") == 2, 600)
        process.send_signal(signal.SIGINT)
        done = sweeps.ended(process, 600)
    assert done.status == 130, done.said
    assert done.ends() == ["interrupted", "interrupted"]
    assert not volcano.list()  # type: ignore[attr-defined]
    kubernetes.until(lambda: not kubernetes.kubectl("get", "pods", "-o", "name"), "pods gone")
