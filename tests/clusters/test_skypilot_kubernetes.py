"""What SkyPilot makes of two nodes of eight H100 with GPUDirect-TCPX, as pods on a real API server.

The nodes are named as GKE names its machines a3-highgpu-8g; their kubelets never get the image, so that nothing runs.
"""

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

from mlperf_exp import network
from tests.clusters import k8s
from tests.clusters.conftest import started
from tests.clusters.debian import gone
from tests.clusters.hosts import unused
from tests.launchers.sky_environment import environment, server

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("MLPERF_TEST_CLUSTERS") != "1", reason="make test-clusters runs it"),
]
A3 = {
    "cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "cloud.google.com/gke-accelerator-count": "8",
    "cloud.google.com/machine-family": "a3", "node.kubernetes.io/instance-type": "a3-highgpu-8g",
}  # fmt: skip
CAPACITY = {"cpu": "208", "memory": "1872Gi", "pods": "110", "ephemeral-storage": "6000Gi", "nvidia.com/gpu": "8"}


@pytest.fixture(scope="module")
def gke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[k8s.Kubernetes]:
    # What SkyPilot wants beside kubectl to enable Kubernetes.
    if why := k8s.missing() or gone(("nc", "socat", "rsync"), ("netcat-openbsd", "socat", "rsync")):
        pytest.skip(f"no Kubernetes control plane here: {why}")
    number = unused("g")
    folder = tmp_path_factory.mktemp("gke")
    with started(k8s.Kubernetes(folder, f"g{number}n", f"10.93.{number}", dict(CAPACITY), dict(A3))) as cluster:
        yield cluster


def test_the_pods_have_the_daemon_the_interfaces_and_nccls_settings(gke: k8s.Kubernetes, tmp_path: Path) -> None:
    python = environment()
    env = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": str(gke.kubeconfig),
           "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}  # fmt: skip
    command = [
        sys.executable, "-m", "mlperf_exp", "hydra/launcher=skypilot", "model=llama3_tiny", "backend=simulated",
        "hw=2x8xh100", "scenario=server", f"hydra.launcher.backend.python={python}",
        "hydra.launcher.python=python", "hydra.launcher.backend.infra=k8s/test", "tracking.enabled=false",
        "hydra.launcher.backend.image=docker:slow/with-googles-nccl-plugin", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    # What SkyPilot would fetch from its catalogs on the Internet for the name of the GPU.
    catalogs = tmp_path / ".sky" / "catalogs" / "v8" / "common"
    catalogs.mkdir(parents=True)
    (catalogs / "accelerators.csv").write_text("AcceleratorName,Clouds\nH100,\"['Kubernetes', 'GCP']\"\n")
    (catalogs / "metadata.csv").write_text("GPU,MemoryGB,Manufacturer\nH100,80,NVIDIA\n")
    folder = tmp_path / "here"
    folder.mkdir()
    with server(env) as sky:
        checked = subprocess.run([sky, "check", "kubernetes"], env=env, capture_output=True, text=True, timeout=600)
        assert "Kubernetes: enabled" in checked.stdout, checked.stdout + checked.stderr
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        try:
            pods = _pods(gke, process, tmp_path / "out")
            process.send_signal(signal.SIGINT)
            assert process.wait(600) == 130, (tmp_path / "out").read_text()
            gke.until(lambda: not gke.kubectl("get", "pods", "-o", "name"), "no pods are left")
        finally:
            process.kill()

    for pod in pods:
        notes = pod["metadata"]["annotations"]
        named = [one["interfaceName"] for one in json.loads(notes["networking.gke.io/interfaces"])]
        assert named == ["eth0", "eth1", "eth2", "eth3", "eth4"]
        assert notes["networking.gke.io/default-interface"] == "eth0"
        assert notes["devices.gke.io/container.tcpx-daemon"].count("/dev/nvidia") == 10
        containers = {one["name"]: one for one in pod["spec"]["containers"]}
        daemon = containers.pop("tcpx-daemon")
        assert "tcpgpudmarxd" in daemon["command"][0]
        assert daemon["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
        [job] = containers.values()
        assert job["resources"]["limits"]["nvidia.com/gpu"] == "8"
        shared = {one["name"] for one in job["volumeMounts"]} & {one["name"] for one in daemon["volumeMounts"]}
        assert {"tcpx-socket", "libraries"} <= shared
        told = {one["name"]: one.get("value") for one in job["env"]}
        ours = network.environment("gpudirect_tcpx", 2)
        theirs = {name: told.get(name) for name in ours}
        assert theirs == dict(ours)


def _pods(gke: k8s.Kubernetes, process: subprocess.Popen[bytes], out: Path) -> list[dict[str, Any]]:
    end = time.monotonic() + 900
    while True:
        text = gke.kubectl("get", "pods", "-o", "json")
        pods: list[dict[str, Any]] = json.loads(text)["items"] if text else []
        if len(pods) == 2:
            return pods
        assert process.poll() is None, out.read_text()
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.5)
