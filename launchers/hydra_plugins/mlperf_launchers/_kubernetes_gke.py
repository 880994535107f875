"""What a pod needs for GPUDirect-TCPX on GKE's A3 High nodes, as a patch over its template.

Sources: Google's guide "Maximize GPU network bandwidth in Standard mode clusters" and the manifest
``gpudirect-tcpx/nccl-test-latest.yaml`` of GoogleCloudPlatform/container-engine-accelerators; the same as
``sky/templates/kubernetes-ray.yml.j2`` of SkyPilot 0.14 creates. One thing differs from both: the daemon is a sidecar
(an init container with ``restartPolicy: Always``, Kubernetes 1.29), as Google's best practice has it
(``gpudirect-tcpxo/best-practice.md``), since beside an ordinary container a Job would never complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

LABEL = "cloud.google.com/gke-accelerator"
ACCELERATOR = "nvidia-h100-80gb"
_DAEMON = "us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpx/tcpgpudmarxd-dev:v2.0.12"
_DEVICES = [*(f"/dev/nvidia{i}" for i in range(8)), "/dev/nvidiactl", "/dev/nvidia-uvm"]
_LIBRARIES = "/usr/local/nvidia/lib64"


def tcpx_patch(container: str, networks: Sequence[str]) -> dict[str, Any]:
    """The patch for a pod whose job runs in ``container``, on the four named Network objects for eth1 to eth4."""
    names = ["default", *networks]
    interfaces = [{"interfaceName": f"eth{i}", "network": name} for i, name in enumerate(names)]
    libraries = {"name": "libraries", "mountPath": _LIBRARIES, "readOnly": True}
    daemon = {
        "name": "tcpx-daemon",
        "image": _DAEMON,
        "restartPolicy": "Always",
        "command": [
            "/tcpgpudmarxd/build/app/tcpgpudmarxd", "--gpu_nic_preset", "a3vm", "--gpu_shmem_type", "fd",
            "--uds_path", "/run/tcpx", "--setup_param", "--verbose 128 2 0",
        ],
        "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
        "env": [{"name": "LD_LIBRARY_PATH", "value": _LIBRARIES}],
        "volumeMounts": [
            libraries,
            {"name": "tcpx-socket", "mountPath": "/run/tcpx"},
            {"name": "sys", "mountPath": "/hostsysfs"},
            {"name": "proc-sys", "mountPath": "/hostprocsysfs"},
        ],
    }  # fmt: skip
    return {
        "metadata": {
            "annotations": {
                "devices.gke.io/container.tcpx-daemon": "".join(f"- path: {path}\n" for path in _DEVICES),
                "networking.gke.io/default-interface": "eth0",
                "networking.gke.io/interfaces": json.dumps(interfaces),
            }
        },
        "spec": {
            "initContainers": [daemon],
            "containers": [
                {
                    "name": container,
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                    "volumeMounts": [{"name": "tcpx-socket", "mountPath": "/tmp"}, libraries],
                }
            ],
            "volumes": [
                {"name": "libraries", "hostPath": {"path": "/home/kubernetes/bin/nvidia/lib64"}},
                {"name": "tcpx-socket", "emptyDir": {}},
                {"name": "sys", "hostPath": {"path": "/sys"}},
                {"name": "proc-sys", "hostPath": {"path": "/proc/sys"}},
            ],
        },
    }
