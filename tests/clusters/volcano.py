"""What Volcano does for a job, as far as a launcher sees it: its resource, its pods, its phases. On a real API server.

Volcano itself cannot be built here. Pods are named and labelled as its controller names them, get its variables
``VC_<TASK>_HOSTS``, and go to the cluster's own scheduler.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
import time
from typing import Any

from kubernetes import client, config

from tests.clusters.k8s import Kubernetes

GROUP = "batch.volcano.sh"
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"jobs.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": "Job", "plural": "jobs", "singular": "job", "shortNames": ["vcjob"]},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
_ENDS = {"Succeeded": "Completed", "Failed": "Failed"}


class Volcano:
    """Its controller, as a thread."""

    def __init__(self, cluster: Kubernetes) -> None:
        cluster.kubectl("apply", "-f", "-", text=json.dumps(DEFINITION))
        cluster.until(lambda: cluster.kubectl("get", "--raw", f"/apis/{GROUP}/v1alpha1"), "Volcano's jobs")
        configuration = client.Configuration()
        config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
        api = client.ApiClient(configuration)
        self._core, self._jobs = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._stopped = threading.Event()
        self._seen: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="volcano", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(30)

    def list(self) -> list[dict[str, Any]]:
        """All of its jobs."""
        found: list[dict[str, Any]] = self._jobs.list_namespaced_custom_object(GROUP, "v1alpha1", "default", "jobs")[
            "items"
        ]
        return found

    def _run(self) -> None:
        while not self._stopped.wait(0.3):
            with contextlib.suppress(Exception):
                self._step()

    def _step(self) -> None:
        jobs = {job["metadata"]["name"]: job for job in self.list()}
        for name in self._seen - set(jobs):
            self._delete_pods(name)
        for name, job in jobs.items():
            phase = job.get("status", {}).get("state", {}).get("phase")
            if name not in self._seen:
                self._seen.add(name)
                self._create_pods(job)
            elif phase == "Aborted":
                self._delete_pods(name)
            elif phase not in _ENDS.values():
                self._tell(job, phase)

    def _create_pods(self, job: dict[str, Any]) -> None:
        name, tasks = job["metadata"]["name"], job["spec"]["tasks"]
        hosts = [
            {"name": f"VC_{task['name'].upper().replace('-', '_')}_HOSTS", "value": f"{name}-{task['name']}-0"}
            for task in tasks
        ]
        owner = {"apiVersion": f"{GROUP}/v1alpha1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        for task in tasks:
            pod = copy.deepcopy(task["template"])
            pod["metadata"] |= {"name": f"{name}-{task['name']}-0", "ownerReferences": [owner]}
            pod["metadata"].setdefault("labels", {})["volcano.sh/job-name"] = name
            for container in pod["spec"]["containers"]:
                container.setdefault("env", []).extend(hosts)
            self._core.create_namespaced_pod("default", {"apiVersion": "v1", "kind": "Pod", **pod})

    def _delete_pods(self, name: str) -> None:
        self._core.delete_collection_namespaced_pod("default", label_selector=f"volcano.sh/job-name={name}")

    def _tell(self, job: dict[str, Any], before: str | None) -> None:
        chosen = f"volcano.sh/job-name={job['metadata']['name']}"
        pods = self._core.list_namespaced_pod("default", label_selector=chosen).items
        phases = [pod.status.phase for pod in pods]
        phase = "Pending"
        if "Failed" in phases:
            phase = "Failed"
        elif phases and all(one == "Succeeded" for one in phases):
            phase = "Completed"
        elif phases and all(one in ("Running", "Succeeded") for one in phases):
            phase = "Running"
        if phase == before:
            return
        names = [task["name"] for task in job["spec"]["tasks"]]
        counts = {name: {"phase": {one: 1}} for name, one in zip(names, phases, strict=False)}
        job["status"] = {"state": {"phase": phase}, "taskStatusCount": counts, "at": time.time()}
        self._jobs.replace_namespaced_custom_object_status(
            GROUP, "v1alpha1", "default", "jobs", job["metadata"]["name"], job
        )
