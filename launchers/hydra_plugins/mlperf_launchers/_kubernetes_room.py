"""Whether the cluster has nodes on which a job could run, and whether the quota allows it: pure, on listed objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import JobSpec, Need
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._kubernetes_manifest import products

from mlperf_exp.errors import UserError
from mlperf_exp.network import TCPX

_KEY = "hydra.launcher.backend"
_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def check_quota(
    namespace: str, settings: KubernetesLauncherConf, jobs: Sequence[JobSpec], quotas: Sequence[Mapping[str, Any]]
) -> None:
    """What one job alone asks beyond the namespace's quota never starts. What others use now may come free.

    Raises:
        UserError: naming the key, the problem and the remedy.
    """
    for job in jobs:
        wanted = _wanted(job.need, settings)
        for quota in quotas:
            for name, limit in (quota.get("spec", {}).get("hard") or {}).items():
                resource = name.removeprefix("requests.")
                total = wanted.get(resource, 0.0) * job.need.nodes
                if name.startswith("requests.") and total > number(limit):
                    raise UserError(
                        "hw" if resource == settings.backend.gpu_resource else "hydra.launcher.resources",
                        f"job {job.number} wants {total:g} of {resource}, and the quota "
                        f"'{quota['metadata']['name']}' of '{namespace}' allows {limit}",
                        "Choose a smaller profile, or ask for more",
                    )


def check_nodes(job: JobSpec, settings: KubernetesLauncherConf, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Whether there are so many nodes that could take a pod of the job, were they empty.

    Raises:
        UserError: naming the key, the problem and the remedy.
    """
    backend, need = settings.backend, job.need
    later = f"If nodes come only when they are wanted, set {_KEY}.check_nodes=false"
    usable = [
        node
        for node in nodes
        if not node["spec"].get("unschedulable")
        and all(_labels(node).get(key) == value for key, value in backend.node_selector.items())
    ]
    if backend.node_selector and not usable:
        raise UserError(f"{_KEY}.node_selector", f"no node has {dict(backend.node_selector)}", f"Mend it. {later}")
    suitable = products(need, backend, need.nodes > 1 and job.facts.get("hw.network") == TCPX)
    if need.gpus_per_node:
        have = [node for node in usable if _room(node, backend.gpu_resource) > 0]
        if not have:
            raise UserError(
                "hw",
                f"job {job.number} wants GPUs, and no node has the resource {backend.gpu_resource}",
                f"See that the GPU operator or device plugin runs, or name another {_KEY}.gpu_resource. {later}",
            )
        usable = have
    if suitable is not None:
        label, values = suitable
        there = sorted({_labels(node)[label] for node in usable if label in _labels(node)})
        usable = [node for node in usable if _labels(node).get(label) in values]
        if not usable:
            raise UserError(
                "hw",
                f"job {job.number} wants nodes with {label}={' or '.join(values)}, and there are "
                f"{', '.join(there) or 'none with this label'}",
                f"Choose a profile that the cluster has, or hydra.launcher.resources.gpu_type. {later}",
            )
    for resource, amount in _wanted(need, settings).items():
        most = max((_room(node, resource) for node in usable), default=0.0)
        usable = [node for node in usable if _room(node, resource) >= amount]
        if not usable:
            key = "hw" if resource == backend.gpu_resource else "hydra.launcher.resources"
            raise UserError(
                key,
                f"job {job.number} wants {_amount(resource, amount)} on a node, and the largest that suits has "
                f"{_amount(resource, most)}",
                f"Give less (hydra.launcher.resources.cpus, .memory_gib, .gpus_per_node). {later}",
            )
    if len(usable) < need.nodes:
        raise UserError(
            "hw",
            f"job {job.number} wants {need.nodes} nodes, and {len(usable)} suit",
            f"Choose another profile. {later}",
        )


def _wanted(need: Need, settings: KubernetesLauncherConf) -> dict[str, float]:
    """What a pod of the job asks of a node: bytes, cores, GPUs."""
    wanted = {
        settings.backend.gpu_resource: float(need.gpus_per_node),
        "cpu": float(need.cpus or 0),
        "memory": (need.memory_gib or 0.0) * 2**30,
    }
    return {name: amount for name, amount in wanted.items() if amount}


def number(quantity: str) -> float:
    """A quantity as Kubernetes writes them (``8Gi``, ``500m``) as a number."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9+-]+)?)([a-zA-Z]*)", str(quantity).strip())
    return float(match[1]) * _UNITS.get(match[2], 1.0) if match else 0.0


def _room(node: Mapping[str, Any], resource: str) -> float:
    return number((node.get("status", {}).get("allocatable") or {}).get(resource, "0"))


def _labels(node: Mapping[str, Any]) -> Mapping[str, str]:
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return labels


def _amount(resource: str, amount: float) -> str:
    return f"{amount / 2**30:.4g} GiB of memory" if resource == "memory" else f"{amount:g} {resource}"
