"""The core of the launcher ``kubernetes``: one Job an attempt, watched by lists, its results out of its log.

Nothing here depends on how pods reach each other (Calico or any other network): a Job of one pod needs the API server
only, one of several also names by the cluster's DNS. What is created carries labels, so that it is found again by
``Attempt.uid`` alone, and belongs to its Job, so that the cluster removes all of it with the Job, after ``ttl_s`` also
where the launcher never comes back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hydra_plugins.mlperf_launchers import _kubernetes_preflight, _kubernetes_removal
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, LaunchError, Log, State, Unreachable
from hydra_plugins.mlperf_launchers._kubernetes_api import Api, Refused, batch, core, namespace_of
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._kubernetes_log import Follower
from hydra_plugins.mlperf_launchers._kubernetes_manifest import CONTAINER, UID, manifests
from hydra_plugins.mlperf_launchers._kubernetes_removal import Remover, selector
from hydra_plugins.mlperf_launchers._kubernetes_state import History, Look, exit_code, replacement, started, state_of

from mlperf_exp.errors import UserError

_LAST_LOG_S = 20.0
_POLL_S, _POLL_MAX_S = 0.5, 3.0
_POLL_SHARE = 0.1  # of the time, at most, goes into asking for states


def connect(settings: KubernetesLauncherConf) -> KubernetesCluster:
    """The cluster that the settings name; nothing is asked of it yet."""
    return KubernetesCluster(settings)


class KubernetesCluster:
    """A namespace of a cluster, as a :class:`_cluster.Cluster`."""

    submits_at_once = 4
    told_by_log = removes_later = True

    def __init__(self, settings: KubernetesLauncherConf) -> None:
        self.shared_files = settings.backend.shared_files
        self._settings, self._backend = settings, settings.backend
        self._namespace = namespace_of(settings.backend)
        self._lock = threading.Lock()
        self._opened: Api | None = None
        self._histories: dict[str, History] = {}
        self._pods: dict[str, list[Mapping[str, Any]]] = {}
        self._followers: dict[tuple[str, str], Follower] = {}
        self._ready: dict[str, tuple[float, bool | None]] = {}
        self._asked_s = 0.0  # what the last question for states took
        self._remover = Remover(lambda attempts: _kubernetes_removal.remove(self._api, self._name, attempts))
        self._paths = {
            "Service": core(self._name, "services"),
            "Job": batch(self._name, "jobs"),
            "Pod": core(self._name, "pods"),
        }

    @property
    def _api(self) -> Api:
        with self._lock:
            if self._opened is None:
                self._opened = Api(self._backend)
            return self._opened

    @property
    def _name(self) -> str:
        return self._namespace or "default"

    @property
    def poll_s(self) -> float:
        """Seldomer where answers are long: the server and this side have many jobs' objects to write and to read."""
        return min(_POLL_MAX_S, max(_POLL_S, self._asked_s / _POLL_SHARE))

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        """See :mod:`_kubernetes_preflight`."""
        _kubernetes_preflight.check(self._api, self._name, self._settings, jobs)

    def render(self, attempt: Attempt) -> str:
        """The manifests, as YAML for ``kubectl apply -f -``."""
        import yaml

        objects = manifests(attempt, self._settings, self._namespace)
        return str(yaml.dump_all(objects, Dumper=_dumper(), sort_keys=False, width=120, explicit_start=True))

    def submit(self, attempt: Attempt) -> str:
        """Create the objects; those that are there already, by an earlier try of the same attempt, stay."""
        api = self._api
        created: dict[str, Mapping[str, Any]] = {}
        try:
            for each in manifests(attempt, self._settings, self._namespace):
                path = self._paths[each["kind"]]
                try:
                    created[each["kind"]] = api.ask("POST", path, each)
                except Refused as error:
                    if error.status != 409:
                        raise
                    created[each["kind"]] = api.ask("GET", f"{path}/{attempt.uid}")
        except Refused as error:
            with contextlib.suppress(Unreachable, Refused):
                self.remove(attempt)
            if error.status in (400, 401, 403, 404, 413, 422):
                raise UserError(
                    "hydra.launcher.backend",
                    f"the cluster refuses job {attempt.name}: {error.text}",
                    "See the manifests with hydra.launcher.dryrun=true",
                ) from None
            raise LaunchError(str(error)) from None
        if "Service" in created:
            self._own(attempt, created["Job"])
        return attempt.uid

    def _own(self, attempt: Attempt, job: Mapping[str, Any]) -> None:
        """Let the Service belong to the Job: whoever deletes it, or its time to live, takes it along."""
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": attempt.uid, "uid": job["metadata"]["uid"]}
        patch = {"metadata": {"ownerReferences": [owner]}}
        with contextlib.suppress(Refused, Unreachable):  # else the launcher removes them itself
            self._api.ask("PATCH", f"{self._paths['Service']}/{attempt.uid}", patch)

    def find(self, attempt: Attempt) -> str | None:
        """The Job, if it is there."""
        try:
            self._api.ask("GET", f"{self._paths['Job']}/{attempt.uid}")
        except Refused as error:
            if error.status == 404:
                return None
            raise Unreachable(str(error)) from None
        return attempt.uid

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """The states of all, by two lists."""
        api = self._api
        wanted, began = selector(attempts), _now()
        try:
            jobs = api.ask("GET", self._paths["Job"], labelSelector=wanted)["items"]
            pods = api.ask("GET", self._paths["Pod"], labelSelector=wanted)["items"]
        except Refused as error:
            raise Unreachable(str(error)) from None
        self._asked_s = _now() - began
        found: dict[str, State] = {}
        for attempt in attempts:
            uid = attempt.uid
            job = next((job for job in jobs if job["metadata"]["name"] == uid), None)
            own = [pod for pod in pods if pod["metadata"]["labels"].get(UID) == uid]
            self._pods[uid] = own or self._pods.get(uid, [])
            history = self._histories.setdefault(uid, History())
            look = Look(self._node_ready, partial(self._events, job), self._backend.image_timeout_s, _now())
            found[str(attempt.id)] = state_of(job, own, history, look)
        return found

    def _node_ready(self, name: str) -> bool | None:
        asked, ready = self._ready.get(name, (0.0, None))
        if _now() - asked > 2.0:
            try:
                node = self._api.ask("GET", f"/api/v1/nodes/{name}")
                conditions = node.get("status", {}).get("conditions") or []
                ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            except Refused as error:
                ready = False if error.status == 404 else None
            self._ready[name] = (_now(), ready)
        return ready

    def _events(self, job: Mapping[str, Any] | None) -> str:
        if job is None:
            return ""
        chosen = f"involvedObject.uid={job['metadata']['uid']},type=Warning"
        with contextlib.suppress(Refused, Unreachable):
            found = self._api.ask("GET", core(self._name, "events"), fieldSelector=chosen)["items"]
            if found:
                last = max(found, key=lambda event: event.get("lastTimestamp") or "")
                return f"{last.get('reason')}: {last.get('message')}"
        return ""

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """Let a thread a pod follow; at the end, wait for their ends."""
        history = self._histories.get(attempt.uid, History())
        for pod in self._pods.get(attempt.uid, []):
            key = (attempt.uid, str(pod["metadata"]["uid"]))
            if key not in self._followers and started(pod) and not replacement(pod, history):
                self._followers[key] = self._follow(attempt, pod, log)
        if final:
            until = _now() + _LAST_LOG_S
            for key, follower in self._followers.items():
                if key[0] == attempt.uid:
                    follower.finish(max(0.0, until - _now()))

    def _follow(self, attempt: Attempt, pod: Mapping[str, Any], log: Log) -> Follower:
        name, uid = str(pod["metadata"]["name"]), pod["metadata"]["uid"]

        def opened(since: int | None, follow: bool) -> Any:
            return self._api.open_log(self._name, name, CONTAINER, since, follow)

        def over() -> bool:
            now = next((p for p in self._pods.get(attempt.uid, []) if p["metadata"]["uid"] == uid), None)
            return now is None or exit_code(now) is not None

        def whole() -> bool:
            return attempt.spec.need.nodes == 1 and log.complete

        return Follower(str(pod["spec"].get("nodeName") or name), log, opened, over, whole)

    def fetch(self, attempt: Attempt) -> None:
        """Nothing: results come by the log, or are on a shared file system."""

    def cancel(self, attempt: Attempt) -> None:
        """Delete the Job and its pods, each with its grace period; what they still print is followed to the end."""
        _kubernetes_removal.end(self._api, self._name, [attempt])

    def remove(self, attempt: Attempt) -> None:
        """Delete everything of the attempt soon, with that of others; :meth:`close` waits for it."""
        self._remover.add(attempt)
        self._pods.pop(attempt.uid, None)
        for key in [key for key in self._followers if key[0] == attempt.uid]:
            del self._followers[key]

    def close(self) -> None:
        """Wait until what was to be removed is gone."""
        self._remover.close()


def _now() -> float:
    return time.monotonic()


def _dumper() -> Any:
    """YAML without anchors: people read it, and copy parts."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's own signature
            return True

    return Plain
