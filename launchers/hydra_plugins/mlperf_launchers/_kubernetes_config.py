"""The keys under ``hydra.launcher`` of the launcher ``kubernetes``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


@dataclass
class Volume:
    """A volume in the job's container: a claim (PersistentVolumeClaim) or a folder of the node."""

    path: str = ""  # where the job sees it
    claim: str | None = None
    host_path: str | None = None
    read_only: bool = False


@dataclass
class KubernetesBackend:
    """What only Kubernetes has. Names are those of objects in the namespace."""

    image: str = ""  # holds this program and its dependencies; must be given
    kubeconfig: str | None = None  # None: $KUBECONFIG, ~/.kube/config, or the pod's own account
    context: str | None = None
    namespace: str | None = None  # None: the context's
    image_pull_policy: str | None = None
    image_pull_secrets: list[str] = field(default_factory=list)
    service_account: str | None = None
    queue: str | None = None  # Kueue's LocalQueue
    priority_class: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    gpu_label: str | None = None  # of nodes; None: nvidia.com/gpu.product, on GKE cloud.google.com/gke-accelerator
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    shared_files: bool = False  # a volume shows the sweep's folder under the path that it has here
    secret: str | None = None  # the Secret that holds hydra.launcher.secrets, under the variables' names
    shared_memory_gib: float = 8.0  # /dev/shm, counts as memory; PyTorch's loaders and NCCL use it
    workdir: str | None = None  # None: the image's
    gke_networks: list[str] = field(default_factory=lambda: ["vpc1", "vpc2", "vpc3", "vpc4"])  # for gpudirect_tcpx
    pod: dict[str, Any] = field(default_factory=dict)  # a strategic merge patch over the pod's template
    check_nodes: bool = True  # false: nodes may come only when they are wanted (autoscaling from zero)
    image_timeout_s: float = 300.0  # how long an image may fail to be pulled
    node_lost_s: float = 60.0  # how long a node may be unreachable until its pods are given up
    ttl_s: int = 86400  # after which the cluster itself removes what a lost launcher left


@dataclass
class KubernetesLauncherConf(RemoteLauncherConf):
    """``hydra/launcher=kubernetes``."""

    _target_: str = "hydra_plugins.mlperf_launchers.kubernetes.KubernetesLauncher"
    backend: KubernetesBackend = field(default_factory=KubernetesBackend)
