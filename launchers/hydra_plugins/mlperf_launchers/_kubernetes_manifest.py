"""An attempt as Kubernetes' own objects: a Job, for several nodes a headless Service.

What to run is an annotation of the pod, which it finds as a file: one object less to write, to own and to remove.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Attempt, Need, dumps
from hydra_plugins.mlperf_launchers._files import REQUEST
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesBackend, KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._kubernetes_gke import ACCELERATOR, LABEL, tcpx_patch
from hydra_plugins.mlperf_launchers._kubernetes_overlay import merged

from mlperf_exp.network import TCPX, environment

CONTAINER = "job"
UID, JOB, SWEEP = "mlperf-exp/uid", "mlperf-exp/job", "mlperf-exp/sweep"
GPU_LABEL = "nvidia.com/gpu.product"  # set by NVIDIA's GPU feature discovery
_ASKED = "mlperf-exp/request"
_MOUNT = "/mnt/mlperf_exp"
_FOLDER = "/tmp/mlperf_exp"  # in the container's own layer; results leave it by the log
_LATE_S = 900  # what a pod may take beside the job's own time: pulling the image, keeping what it has

# The product labels of a profile's hw.gpu: boards of one GPU differ in name where they differ in form.
_PRODUCTS = {
    "NVIDIA A100 80GB": ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"],
    "NVIDIA H100 80GB": ["NVIDIA-H100-80GB-HBM3"],
}


def manifests(attempt: Attempt, settings: KubernetesLauncherConf, namespace: str | None) -> list[dict[str, Any]]:
    """The objects of an attempt, in the order in which they are created. All have the name ``attempt.uid``."""
    backend, need = settings.backend, attempt.spec.need
    labels = {
        "app.kubernetes.io/name": "mlperf-exp",
        "app.kubernetes.io/managed-by": "mlperf-exp",
        SWEEP: attempt.uid.rsplit("-", 2)[0],
        JOB: str(attempt.spec.number),
        "mlperf-exp/attempt": str(attempt.number),
        UID: attempt.uid,
    }
    metadata: dict[str, Any] = {"name": attempt.uid, "labels": labels}
    if namespace is not None:
        metadata["namespace"] = namespace
    objects: list[dict[str, Any]] = []
    if need.nodes > 1:
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                # Nodes look for the first one before any of them is ready.
                "spec": {"clusterIP": "None", "selector": {UID: attempt.uid}, "publishNotReadyAddresses": True},
            }
        )
    queue = {"kueue.x-k8s.io/queue-name": backend.queue} if backend.queue else {}
    return [
        *objects,
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata | {"labels": labels | queue},
            "spec": _job(need, backend) | {"template": template(attempt, settings, labels)},
        },
    ]


def _job(need: Need, backend: KubernetesBackend) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "parallelism": need.nodes,
        "completions": need.nodes,
        "backoffLimit": 0,  # another attempt is the launcher's business, in a folder of its own
        "ttlSecondsAfterFinished": backend.ttl_s,
        # Says in the Job's own condition that not the job failed. Servers before 1.25 drop what they do not know.
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
    }
    if need.nodes > 1:
        spec["completionMode"] = "Indexed"
    if backend.queue:
        spec["suspend"] = True  # until Kueue admits it
    return spec


def template(attempt: Attempt, settings: KubernetesLauncherConf, labels: Mapping[str, str]) -> dict[str, Any]:
    """The pod's template, with GKE's additions and the user's patch over it."""
    backend, need = settings.backend, attempt.spec.need
    folder = str(attempt.folder) if backend.shared_files else f"{_FOLDER}/{attempt.uid}"
    request = attempt.request(settings, folder, settings.python or "python", backend.workdir)
    asked = {"path": REQUEST, "fieldRef": {"fieldPath": f"metadata.annotations['{_ASKED}']"}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "automountServiceAccountToken": backend.service_account is not None,
        "terminationGracePeriodSeconds": math.ceil(settings.grace_s) + 15,
        "tolerations": _tolerations(need, backend),
        "containers": [_container(attempt, settings)],
        "volumes": [
            {"name": "request", "downwardAPI": {"items": [asked]}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mib(backend.shared_memory_gib)}},
            *(_volume(i, volume) for i, volume in enumerate(backend.volumes)),
        ],
    }
    if settings.timeout_s is not None:  # the node itself ends a job in time; this is for one that does not
        pod["activeDeadlineSeconds"] = math.ceil(settings.timeout_s + settings.grace_s) + _LATE_S
    if backend.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in backend.image_pull_secrets]
    optional = {
        "serviceAccountName": backend.service_account,
        "priorityClassName": backend.priority_class,
        "nodeSelector": dict(backend.node_selector),
        "affinity": _affinity(attempt, backend),
    }
    pod |= {key: value for key, value in optional.items() if value}
    if need.nodes > 1:
        pod["subdomain"] = attempt.uid
    result: dict[str, Any] = {"metadata": {"labels": dict(labels)}, "spec": pod}
    if tcpx(attempt):
        result = merged(result, tcpx_patch(CONTAINER, backend.gke_networks))
    patched: dict[str, Any] = merged(result, backend.pod)
    annotations = patched["metadata"].get("annotations") or {}
    patched["metadata"]["annotations"] = {**annotations, _ASKED: dumps(request)}
    return patched


def tcpx(attempt: Attempt) -> bool:
    """Whether the attempt's nodes speak to each other by GPUDirect-TCPX."""
    return attempt.spec.need.nodes > 1 and attempt.spec.facts.get("hw.network") == TCPX


def products(need: Need, backend: KubernetesBackend, on_gke: bool) -> tuple[str, list[str]] | None:
    """The nodes' label and its values that suit the job's GPU; None: any node that has the resource."""
    if need.gpus_per_node == 0 or (backend.gpu_label == ""):
        return None
    label = backend.gpu_label or (LABEL if on_gke else GPU_LABEL)
    if need.gpu_type is not None:
        return label, [need.gpu_type]
    if on_gke:
        return label, [ACCELERATOR]
    if need.gpu is None:
        return None
    return label, _PRODUCTS.get(need.gpu, [need.gpu.replace(" ", "-")])


def _container(attempt: Attempt, settings: KubernetesLauncherConf) -> dict[str, Any]:
    backend, need = settings.backend, attempt.spec.need
    node = ["-m", "hydra_plugins.mlperf_launchers._node", f"{_MOUNT}/{REQUEST}"]
    env: list[dict[str, Any]] = [
        {"name": name, "value": value}
        for name, value in environment(attempt.spec.facts.get("hw.network"), need.nodes).items()
    ]
    env += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": backend.secret, "key": name}}}
        for name in settings.secrets
    ]
    if need.nodes > 1:
        env.append({"name": "MLPERF_EXP_MASTER", "value": f"{attempt.uid}-0.{attempt.uid}"})
        node += ["--rank-env", "JOB_COMPLETION_INDEX", "--master-env", "MLPERF_EXP_MASTER"]
    if not backend.shared_files:
        node.append("--handback")
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    if need.gpus_per_node:
        limits[backend.gpu_resource] = requests[backend.gpu_resource] = str(need.gpus_per_node)
    if need.cpus:
        requests["cpu"] = str(need.cpus)  # no limit: throttling would show in the latencies
    if need.memory_gib:
        limits["memory"] = requests["memory"] = _mib(need.memory_gib)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": backend.image,
        "command": [settings.python or "python", *node],
        "env": env,
        "resources": {"limits": limits, "requests": requests},
        "volumeMounts": [
            {"name": "request", "mountPath": _MOUNT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *(
                {"name": f"volume-{i}", "mountPath": volume.path, "readOnly": volume.read_only}
                for i, volume in enumerate(backend.volumes)
            ),
        ],
    }
    if backend.image_pull_policy:
        container["imagePullPolicy"] = backend.image_pull_policy
    return container


def _tolerations(need: Need, backend: KubernetesBackend) -> list[dict[str, Any]]:
    own: list[dict[str, Any]] = [
        {
            "key": f"node.kubernetes.io/{trouble}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": math.ceil(backend.node_lost_s),
        }
        for trouble in ("not-ready", "unreachable")
    ]
    if need.gpus_per_node:  # GPU nodes are often tainted by the resource's name
        own.append({"key": backend.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    return [*own, *(dict(toleration) for toleration in backend.tolerations)]


def _affinity(attempt: Attempt, backend: KubernetesBackend) -> dict[str, Any]:
    found: dict[str, Any] = {}
    suitable = products(attempt.spec.need, backend, tcpx(attempt))
    if suitable is not None:
        label, values = suitable
        terms = [{"matchExpressions": [{"key": label, "operator": "In", "values": values}]}]
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if attempt.spec.need.nodes > 1:  # so many nodes, and not so many pods on one
        apart = {"labelSelector": {"matchLabels": {UID: attempt.uid}}, "topologyKey": "kubernetes.io/hostname"}
        found["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}
    return found


def _volume(i: int, volume: Any) -> dict[str, Any]:
    if volume.claim is not None:
        return {
            "name": f"volume-{i}",
            "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
        }
    return {"name": f"volume-{i}", "hostPath": {"path": volume.host_path}}


def _mib(gib: float) -> str:
    return f"{math.ceil(gib * 1024)}Mi"
