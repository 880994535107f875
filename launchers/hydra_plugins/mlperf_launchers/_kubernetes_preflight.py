"""Whether a sweep's jobs can run in a namespace, looked up before anything is created there.

What the account may not see is not held against it: a question that is refused (403) counts as answered well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from hydra_plugins.mlperf_launchers._cluster import JobSpec
from hydra_plugins.mlperf_launchers._kubernetes_api import Api, Refused, core
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._kubernetes_room import check_nodes, check_quota

from mlperf_exp.errors import UserError
from mlperf_exp.network import TCPX

_KEY = "hydra.launcher.backend"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_INDEXED = (1, 22)  # Indexed Jobs are on from here
_SIDECARS = (1, 29)


def check(api: Api, namespace: str, settings: KubernetesLauncherConf, jobs: Sequence[JobSpec]) -> None:
    """Refuse what cannot run.

    Raises:
        UserError: naming the key, the problem and the remedy.
        Unreachable: the API server does not answer.
    """
    backend = settings.backend
    check_settings(settings)
    version = _version(api)
    _namespace(api, namespace)
    _rights(api, namespace, any(job.need.nodes > 1 for job in jobs))
    for job in jobs:
        _served(job, version)
    _objects(api, namespace, settings)
    if backend.queue is not None:
        _queue(api, namespace, backend.queue)
    quotas = _answer(lambda: api.ask("GET", core(namespace, "resourcequotas"))["items"])
    check_quota(namespace, settings, jobs, quotas or [])
    if backend.check_nodes:
        nodes = _answer(lambda: api.ask("GET", "/api/v1/nodes")["items"])
        for job in jobs if nodes is not None else ():
            check_nodes(job, settings, nodes)


def check_settings(settings: KubernetesLauncherConf) -> None:
    """What can be seen without the cluster.

    Raises:
        UserError: naming the key.
    """
    backend = settings.backend
    if not backend.image.strip():
        raise UserError(
            f"{_KEY}.image",
            "names no image",
            f"Give one that holds this program: {_KEY}.image=registry/name:tag (docs/a30-cluster.md builds one)",
        )
    for volume in backend.volumes:
        if not volume.path.startswith("/") or (volume.claim is None) == (volume.host_path is None):
            raise UserError(
                f"{_KEY}.volumes",
                f"'{volume.path}' wants an absolute path, and either claim or host_path",
                f"Write '{_KEY}.volumes=[{{path: /data, claim: datasets}}]'",
            )
    if settings.secrets and backend.secret is None:
        raise UserError(
            f"{_KEY}.secret",
            f"no Secret is named that holds {', '.join(settings.secrets)}",
            "Make one (kubectl create secret generic tokens --from-literal=NAME=...), and name it",
        )
    if backend.shared_files and not backend.volumes and not backend.pod:
        raise UserError(
            f"{_KEY}.shared_files",
            "no volume shows the sweep's folder to the jobs",
            f"Give {_KEY}.volumes, or leave it out: results then come back by the log",
        )


def _version(api: Api) -> tuple[int, int]:
    try:
        answer = api.ask("GET", "/version")
    except Refused as error:
        if error.status == 401:
            raise UserError(
                f"{_KEY}.kubeconfig",
                f"{api.host} does not accept the credentials in it",
                "Log in again, or choose another context",
            ) from None
        return (99, 0)
    numbers = [re.sub(r"\D", "", str(answer.get(part, ""))) or "0" for part in ("major", "minor")]
    return int(numbers[0]), int(numbers[1])


def _namespace(api: Api, namespace: str) -> None:
    try:
        api.ask("GET", core(namespace))
    except Refused as error:
        if error.status == 401:
            raise UserError(
                f"{_KEY}.kubeconfig", f"{api.host} does not accept the credentials in it", "Log in again"
            ) from None
        if error.status == 404:
            raise UserError(
                f"{_KEY}.namespace",
                f"there is no namespace '{namespace}' on {api.host}",
                f"Create it (kubectl create namespace {namespace}), or give another",
            ) from None


def _rights(api: Api, namespace: str, services: bool) -> None:
    wanted = [
        ("create", "batch", "jobs", ""),
        ("delete", "batch", "jobs", ""),
        ("list", "batch", "jobs", ""),
        ("list", "", "pods", ""),
        ("delete", "", "pods", ""),
        ("get", "", "pods", "log"),
        *([("create", "", "services", ""), ("delete", "", "services", "")] if services else []),
    ]
    missing = []
    for verb, group, resource, sub in wanted:
        attributes = {
            "namespace": namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": sub,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        review = _answer(partial(api.ask, "POST", _REVIEWS, body))
        if review is not None and not review.get("status", {}).get("allowed"):
            missing.append(f"{verb} {resource}{f'/{sub}' if sub else ''}")
    if missing:
        raise UserError(
            f"{_KEY}.namespace",
            f"your account may not {', '.join(missing)} in '{namespace}'",
            "Ask for a Role with these rights (docs/a30-cluster.md has one), or choose another namespace or context",
        )


def _served(job: JobSpec, version: tuple[int, int]) -> None:
    """Whether the server knows what the job's manifests ask for."""
    if job.need.nodes > 1 and version < _INDEXED:
        raise UserError(
            "hw",
            f"job {job.number} wants {job.need.nodes} nodes, and the server is {version[0]}.{version[1]}: Indexed Jobs "
            f"came with {_INDEXED[0]}.{_INDEXED[1]}",
            "Choose a profile of one node, or a newer cluster",
        )
    if job.need.nodes > 1 and job.facts.get("hw.network") == TCPX and version < _SIDECARS:
        raise UserError(
            "hw.network",
            f"{TCPX} needs sidecar containers, which came with {_SIDECARS[0]}.{_SIDECARS[1]}, and the server is "
            f"{version[0]}.{version[1]}",
            "Use a newer GKE version",
        )


def _objects(api: Api, namespace: str, settings: KubernetesLauncherConf) -> None:
    """Claims, Secrets and accounts that the pods name."""
    backend = settings.backend
    claims = [volume.claim for volume in backend.volumes if volume.claim is not None]
    secrets = [*backend.image_pull_secrets, *([backend.secret] if backend.secret else [])]
    wanted = [
        *((f"{_KEY}.volumes", "PersistentVolumeClaim", "persistentvolumeclaims", claim) for claim in claims),
        *((f"{_KEY}.secret", "Secret", "secrets", name) for name in secrets),
    ]
    if backend.service_account is not None:
        wanted.append((f"{_KEY}.service_account", "ServiceAccount", "serviceaccounts", backend.service_account))
    for key, kind, resource, name in wanted:
        found = _answer(partial(api.ask, "GET", core(namespace, resource, name)), missing={})
        if found == {}:
            raise UserError(
                key, f"there is no {kind} '{name}' in namespace '{namespace}'", "Create it, or give another"
            )
        if kind == "Secret" and name == backend.secret and found is not None:
            absent = [each for each in settings.secrets if each not in (found.get("data") or {})]
            if absent:
                raise UserError(
                    "hydra.launcher.secrets",
                    f"the Secret '{name}' does not hold {', '.join(absent)}",
                    "Add it there under the variable's name",
                )
    if backend.priority_class is not None:
        name = backend.priority_class
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{quote(name, safe='')}"
        if _answer(lambda: api.ask("GET", path), missing={}) == {}:
            raise UserError(
                f"{_KEY}.priority_class", f"there is no PriorityClass '{name}'", "Create it, or leave it out"
            )


def _queue(api: Api, namespace: str, queue: str) -> None:
    """Whether Kueue has the queue; of its API versions, the first that the server knows."""
    group = "/apis/kueue.x-k8s.io"
    served = _answer(lambda: api.ask("GET", f"{group}/v1beta1"), missing={})
    newer = _answer(lambda: api.ask("GET", f"{group}/v1beta2"), missing={})
    if served == {} and newer == {}:
        raise UserError(f"{_KEY}.queue", "Kueue is not installed in this cluster", "Install it, or leave the key out")
    version = "v1beta2" if newer else "v1beta1"
    path = f"{group}/{version}/namespaces/{quote(namespace, safe='')}/localqueues/{quote(queue, safe='')}"
    if _answer(lambda: api.ask("GET", path), missing={}) == {}:
        raise UserError(
            f"{_KEY}.queue",
            f"Kueue has no LocalQueue '{queue}' in namespace '{namespace}'",
            "See kubectl get localqueues, and give one of them",
        )


def _answer(question: Callable[[], Any], missing: Any = None) -> Any:
    """The answer; ``missing`` where there is no such thing; None where the account may not ask."""
    try:
        return question()
    except Refused as error:
        return missing if error.status == 404 else None
