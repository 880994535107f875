"""What a Job and its pods say of an attempt: pure functions on the API's own objects, as JSON has them.

A Job alone says too little: why its pod waits, whether the job or the machine is to blame for its end, and whether a
pod that was deleted ran on a node that is gone. Servers before 1.26 also start another pod for one that was deleted,
which here counts as the end of the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Kind, State
from hydra_plugins.mlperf_launchers._kubernetes_manifest import CONTAINER

Object = Mapping[str, Any]
_SILENT_S = 5.0  # a Job without a pod for so long has its reasons in events
_STUCK_S = 30.0  # beyond the grace period: a kubelet that does not finish a deletion is gone
_PULLING = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError")
_NEVER = ("InvalidImageName", "ErrImageNeverPull")
_NO_IMAGE = ("not found", "does not exist", "manifest unknown", "unauthorized", "denied", "authorization failed",
             "no such host", "invalid reference")  # fmt: skip
_BROKEN = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
_PREEMPTED = {"Evicted", "Preempting", "Preempted", "PreemptionByScheduler", "EvictionByEvictionAPI",
              "DeletionByTaintManager", "TerminationByKubelet", "Terminated", "Shutdown", "NodeShutdown"}  # fmt: skip
_LOST = {"NodeLost", "DeletionByPodGC", "NodeAffinity", "UnexpectedAdmissionError", "ContainerStatusUnknown",
         "OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfnvidia.com/gpu"}  # fmt: skip


@dataclass(slots=True)
class History:
    """What an attempt's objects showed before, by this process's own clock (seconds)."""

    pods: dict[str, str] = field(default_factory=dict)  # index -> uid of the first pod
    since: dict[str, float] = field(default_factory=dict)  # what has been so since when
    node: str = ""
    lost: str | None = None  # why a pod is gone
    image: str = ""  # what was first said of an image

    def first(self, what: str, now: float) -> float:
        """For how long ``what`` has been so."""
        return now - self.since.setdefault(what, now)


@dataclass(frozen=True, slots=True)
class Look:
    """What else can be asked: whether a node is ready (None: not known), and what events say of the Job."""

    ready: Callable[[str], bool | None]
    events: Callable[[], str]
    image_timeout_s: float
    now: float


def state_of(job: Object | None, pods: Sequence[Object], history: History, look: Look) -> State:
    """The state of an attempt, whose Job is None where there is none any more."""
    nodes = tuple(sorted({pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")}))
    active = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    if job is None or job["metadata"].get("deletionTimestamp"):
        return _removed(active, nodes, history, look)
    ended = _ended(job, pods, nodes, history)
    if ended is not None:
        return ended
    lost = _lost(pods, history, look)
    if lost is not None:
        return State(lost, history.lost or "its pod is gone", nodes=nodes)
    wanted = int(job["spec"].get("parallelism") or 1)
    if len(pods) < wanted:
        return State(Kind.queued, _no_pod(job, history, look), nodes=nodes)
    waiting = [reason for pod in active if (reason := _waits(pod))]
    if waiting:
        return _queued(waiting, nodes, history, look)
    history.since.pop("image", None)
    return State(Kind.running, nodes=nodes)


def started(pod: Object) -> bool:
    """Whether the job's container runs, or has run."""
    state = _container(pod).get("state") or {}
    return state.get("running") is not None or state.get("terminated") is not None


def exit_code(pod: Object) -> int | None:
    """The exit code of the job's container; None where it has not ended."""
    code: int | None = ((_container(pod).get("state") or {}).get("terminated") or {}).get("exitCode")
    return code


def replacement(pod: Object, history: History) -> bool:
    """Whether the Job's controller started it in the place of one that was deleted: it is not of this attempt."""
    uid = str(pod["metadata"]["uid"])
    return history.pods.get(_index(pod), uid) != uid


def _index(pod: Object) -> str:
    return str(pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-completion-index", "0"))


def _removed(active: Sequence[Object], nodes: tuple[str, ...], history: History, look: Look) -> State:
    if active and history.first("removed", look.now) < 120.0:  # pods in their grace period
        kind = Kind.running if any(started(pod) for pod in active) else Kind.queued
        return State(kind, "its Job is deleted, its pods end", nodes=nodes)
    return State(Kind.cancelled, history.lost or "its Job was deleted", nodes=nodes)


def _ended(job: Object, pods: Sequence[Object], nodes: tuple[str, ...], history: History) -> State | None:
    """The state where the Job, or its only pod, has come to its end."""
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or [] if c.get("status") == "True"}
    phases = [pod.get("status", {}).get("phase") for pod in pods]
    complete = bool(phases) and all(phase == "Succeeded" for phase in phases)
    if "Complete" in conditions or (complete and len(pods) >= int(job["spec"].get("completions") or 1)):
        return State(Kind.succeeded, exit_code=0, nodes=nodes)
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    if failed:
        # Where one node fails, the others are interrupted: the first to end is to blame.
        return min((_blamed(pod, nodes) for pod in failed), key=lambda state: state.kind.fault is None)
    if "Failed" in conditions:
        condition = conditions["Failed"]
        reason = f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        if condition.get("reason") == "DeadlineExceeded":
            return State(Kind.timeout, reason, nodes=nodes)
        kind = Kind.preempted if "DisruptionTarget" in reason or history.lost else Kind.failed
        if not pods:  # deleted with its pod, on servers that do not start another
            kind = Kind.preempted
        return State(kind, history.lost or reason, nodes=nodes)
    return None


def _blamed(pod: Object, nodes: tuple[str, ...]) -> State:
    """The state by a pod that failed."""
    status = pod.get("status", {})
    why = {str(status.get("reason", ""))}
    told = [str(status.get("message", ""))]
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            why.add(str(condition.get("reason", "")))
            told.append(str(condition.get("message", "")))
    terminated = (_container(pod).get("state") or {}).get("terminated") or {}
    message = next((text for text in told if text), "")
    where = f" on {pod['spec']['nodeName']}" if pod["spec"].get("nodeName") else ""
    for reasons, kind in ((_LOST, Kind.lost), (_PREEMPTED, Kind.preempted)):
        if why & reasons:
            return State(kind, f"{', '.join(sorted(why & reasons))}{where}: {message}".rstrip(": "), nodes=nodes)
    code = terminated.get("exitCode")
    if "DeadlineExceeded" in why:
        return State(Kind.timeout, message or "DeadlineExceeded", code, nodes)
    if terminated.get("reason") == "OOMKilled":
        limit = (_spec(pod).get("resources", {}).get("limits") or {}).get("memory")
        text = f"OOMKilled{where}: it took more memory than its limit of {limit}"
        return State(Kind.failed, f"{text}; raise hydra.launcher.resources.memory_gib", code, nodes)
    reason = terminated.get("message") or (terminated.get("reason") if terminated.get("reason") != "Error" else "")
    return State(Kind.failed, message or reason or "", code, nodes)


def _lost(pods: Sequence[Object], history: History, look: Look) -> Kind | None:
    """Which fault it is where a pod has been deleted, or its node does not answer any more."""
    seen = {_index(pod): pod for pod in pods if not replacement(pod, history)}
    replaced = {_index(pod) for pod in pods if replacement(pod, history)}  # while the first one is being deleted
    if any(index not in seen for index in history.pods):
        return _deleted(history)
    for index, pod in seen.items():
        history.pods.setdefault(index, pod["metadata"]["uid"])
        node = pod["spec"].get("nodeName")
        history.node = node or history.node
        if not pod["metadata"].get("deletionTimestamp"):
            continue
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        stuck = history.first(f"deleting {index}", look.now) > grace + _STUCK_S
        if node and (look.ready(node) is False or stuck):
            history.lost = f"the node {node} does not answer any more"
            return Kind.lost
        if index in replaced:
            return _deleted(history)
    return None


def _deleted(history: History) -> Kind:
    history.lost = history.lost or f"its pod{f' on {history.node}' if history.node else ''} was deleted"
    return Kind.lost if "does not answer" in history.lost else Kind.preempted


def _no_pod(job: Object, history: History, look: Look) -> str:
    labels = job["metadata"].get("labels") or {}
    if job["spec"].get("suspend"):
        return f"waits to be admitted by Kueue's queue {labels.get('kueue.x-k8s.io/queue-name', '')}".rstrip()
    if history.first("no pod", look.now) < _SILENT_S:
        return "no pod yet"
    return look.events() or "no pod yet"


def _waits(pod: Object) -> tuple[str, str] | None:
    """Why the pod's container does not run yet: a reason and its text; None where it runs, or has ended."""
    status = pod.get("status", {})
    container = _container(pod).get("state") or {}
    if started(pod):
        return None
    for other in status.get("initContainerStatuses") or []:
        waiting = (other.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") in (*_PULLING, *_BROKEN):
            return str(waiting["reason"]), f"container {other['name']}: {waiting.get('message', '')}"
    waiting = container.get("waiting") or {}
    if waiting.get("reason") in (*_PULLING, *_BROKEN):
        return str(waiting["reason"]), str(waiting.get("message", ""))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("reason", "Unschedulable")), str(condition.get("message", ""))
    return str(waiting.get("reason") or status.get("phase") or "Pending"), str(waiting.get("message") or "")


def _queued(waiting: Sequence[tuple[str, str]], nodes: tuple[str, ...], history: History, look: Look) -> State:
    """Queued; for good where an image cannot be pulled, or the pod is wrong."""
    trouble = next(((reason, text) for reason, text in waiting if reason in (*_PULLING, *_BROKEN)), None)
    if trouble is None:
        history.since.pop("image", None)
        reason, text = waiting[0]
        return State(Kind.queued, f"{reason}: {text}".rstrip(": "), nodes=nodes)
    reason, text = trouble
    tried_s = history.first("image", look.now)
    if text and not (reason == "ImagePullBackOff" and history.image):  # "Back-off pulling" hides what was said first
        history.image = " ".join(text.split())
    never = reason in _NEVER or tried_s > look.image_timeout_s
    never = never or (reason in _PULLING and any(word in history.image.lower() for word in _NO_IMAGE) and tried_s > 1.0)
    return State(Kind.queued, f"{reason}: {history.image}".rstrip(": "), nodes=nodes, fatal=never)


def _container(pod: Object) -> Mapping[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((status for status in statuses if status.get("name") == CONTAINER), {})


def _spec(pod: Object) -> Mapping[str, Any]:
    return next((one for one in pod["spec"]["containers"] if one.get("name") == CONTAINER), {})
