"""The launcher ``kubernetes`` without a cluster: its manifests against the API's own schemas, states, checks, logs.

What it does on a real control plane is in ``tests/clusters/test_kubernetes.py`` (``make test-clusters``).
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hydra_plugins.mlperf_launchers import _kubernetes, _kubernetes_removal
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Kind, Need, State, Unreachable
from hydra_plugins.mlperf_launchers._kubernetes_api import Api, Refused
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesBackend, KubernetesLauncherConf, Volume
from hydra_plugins.mlperf_launchers._kubernetes_log import Follower
from hydra_plugins.mlperf_launchers._kubernetes_manifest import manifests
from hydra_plugins.mlperf_launchers._kubernetes_overlay import merged
from hydra_plugins.mlperf_launchers._kubernetes_preflight import check_settings
from hydra_plugins.mlperf_launchers._kubernetes_removal import Remover
from hydra_plugins.mlperf_launchers._kubernetes_room import check_nodes, check_quota, number
from hydra_plugins.mlperf_launchers._kubernetes_state import History, Look, replacement, state_of

from mlperf_exp.errors import UserError

NASTY = "a b,c;d'e\"f$HOME`g`\n{h}\\=é*"
A30 = Need(gpus_per_node=1, gpu="NVIDIA A30")
TCPX = Need(nodes=2, gpus_per_node=8, gpu="NVIDIA H100 80GB", cpus=200, memory_gib=1800)


def settings(**backend: Any) -> KubernetesLauncherConf:
    return KubernetesLauncherConf(backend=KubernetesBackend(**{"image": "registry/mlperf:1", **backend}))


def attempt(need: Need = A30, *overrides: str, network: str | None = None) -> Attempt:
    arguments = ("-m", "mlperf_exp", *overrides)
    spec = JobSpec(3, overrides, arguments, Path("/sweep/3"), need, facts={"hw.network": network})
    return Attempt(spec, 2, "mlperf-0a1b2c3d-3-2", "mlperf-0a1b2c3d-3-2")


def objects(made: Attempt, conf: KubernetesLauncherConf) -> dict[str, Any]:
    return {each["kind"]: each for each in manifests(made, conf, "team")}


def container(job: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == "job")
    return found


FULL: dict[str, Any] = {
    "queue": "a30",
    "image_pull_secrets": ["pull"],
    "service_account": "runner",
    "priority_class": "batch",
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "team", "operator": "Equal", "value": "x", "effect": "NoSchedule"}],
    "volumes": [Volume("/data", claim="datasets", read_only=True), Volume("/scratch", host_path="/mnt/scratch")],
    "secret": "tokens",
}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize(
    ("need", "network", "backend"),
    [
        (Need(), None, {}),
        (A30, None, FULL),
        (Need(nodes=2, gpus_per_node=1, gpu="NVIDIA A30"), "ethernet", FULL),
        (TCPX, "gpudirect_tcpx", {}),
    ],
)
def test_manifests_are_what_the_api_s_schemas_allow(
    version: str, need: Need, network: str | None, backend: dict[str, Any]
) -> None:
    conf = settings(**backend)
    conf.secrets, conf.timeout_s = (["HF_TOKEN"] if backend else []), 60.5
    made = manifests(attempt(need, network=network), conf, "team")
    assert [each["kind"] for each in made] == [*(["Service"] if need.nodes > 1 else []), "Job"]
    for each in made:
        kubernetes_validate.validate(each, version, strict=True)
        assert each["metadata"]["name"] == "mlperf-0a1b2c3d-3-2" and each["metadata"]["namespace"] == "team"


def test_one_pod_is_never_started_twice_and_named_by_sweep_and_job() -> None:
    job = objects(attempt(), settings())["Job"]
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert (labels["mlperf-exp/sweep"], labels["mlperf-exp/job"]) == ("mlperf-0a1b2c3d", "3")
    assert "completionMode" not in job["spec"] and "suspend" not in job["spec"]


def test_overrides_travel_in_a_file_and_in_no_command_line() -> None:
    pod = objects(attempt(A30, f"name={NASTY}"), settings())["Job"]["spec"]["template"]
    request = json.loads(pod["metadata"]["annotations"]["mlperf-exp/request"])
    assert request["command"][1:4] == ["-m", "mlperf_exp", f"name={NASTY}"]
    assert "name=" not in json.dumps(pod["spec"])
    [item] = pod["spec"]["volumes"][0]["downwardAPI"]["items"]
    assert item == {"path": "request.json", "fieldRef": {"fieldPath": "metadata.annotations['mlperf-exp/request']"}}


def test_secrets_are_named_and_never_held() -> None:
    conf = settings(secret="tokens")
    conf.secrets = ["HF_TOKEN"]
    env = container(objects(attempt(), conf)["Job"])["env"]
    assert env == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "HF_TOKEN"}}}]


def test_a_gpu_s_product_chooses_the_nodes() -> None:
    def expression(need: Need, **backend: Any) -> Any:
        spec = objects(attempt(need), settings(**backend))["Job"]["spec"]["template"]["spec"]
        node = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
        return node and node["nodeSelectorTerms"][0]["matchExpressions"][0]

    assert expression(A30) == {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-A30"]}
    assert expression(Need(gpus_per_node=1, gpu="NVIDIA A30", gpu_type="NVIDIA-A30-SHARED"))["values"] == [
        "NVIDIA-A30-SHARED"
    ]
    assert expression(A30, gpu_label="team/gpu")["key"] == "team/gpu"
    assert expression(A30, gpu_label="") is None and expression(Need()) is None
    limits = container(objects(attempt(A30), settings())["Job"])["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "1"}


def test_several_nodes_are_an_indexed_job_that_finds_its_first_pod_by_name() -> None:
    made = objects(attempt(Need(nodes=2, gpus_per_node=1)), settings())
    spec, pod = made["Job"]["spec"], made["Job"]["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert made["Service"]["spec"]["clusterIP"] == "None" and made["Service"]["spec"]["publishNotReadyAddresses"]
    assert made["Service"]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["subdomain"] == made["Service"]["metadata"]["name"]
    job = container(made["Job"])
    assert {"name": "MLPERF_EXP_MASTER", "value": "mlperf-0a1b2c3d-3-2-0.mlperf-0a1b2c3d-3-2"} in job["env"]
    assert job["command"][-5:] == [
        "--rank-env", "JOB_COMPLETION_INDEX", "--master-env", "MLPERF_EXP_MASTER", "--handback",
    ]  # fmt: skip
    apart = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert apart["topologyKey"] == "kubernetes.io/hostname"


def test_gpudirect_tcpx_has_what_gke_needs() -> None:
    template = objects(attempt(TCPX, network="gpudirect_tcpx"), settings())["Job"]["spec"]["template"]
    notes, pod = template["metadata"]["annotations"], template["spec"]
    interfaces = json.loads(notes["networking.gke.io/interfaces"])
    assert [each["interfaceName"] for each in interfaces] == ["eth0", "eth1", "eth2", "eth3", "eth4"]
    assert [each["network"] for each in interfaces] == ["default", "vpc1", "vpc2", "vpc3", "vpc4"]
    devices = [each["path"] for each in yaml.safe_load(notes["devices.gke.io/container.tcpx-daemon"])]
    assert devices == [*(f"/dev/nvidia{i}" for i in range(8)), "/dev/nvidiactl", "/dev/nvidia-uvm"]
    (daemon,) = pod["initContainers"]
    assert (daemon["name"], daemon["restartPolicy"]) == ("tcpx-daemon", "Always")  # beside it a Job still completes
    job = container({"spec": {"template": template}})
    socket = {mount["mountPath"] for mount in job["volumeMounts"] if mount["name"] == "tcpx-socket"}
    env = {each["name"]: each["value"] for each in job["env"]}
    assert socket == {env["NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX"]}
    assert {m["mountPath"] for m in daemon["volumeMounts"]} == {
        "/usr/local/nvidia/lib64", "/run/tcpx", "/hostsysfs", "/hostprocsysfs",
    }  # fmt: skip
    assert "/usr/local/nvidia/lib64" in {mount["mountPath"] for mount in job["volumeMounts"]}
    assert env["NCCL_GPUDIRECTTCPX_SOCKET_IFNAME"] == "eth1,eth2,eth3,eth4"
    node = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert node[0]["matchExpressions"][0] == {
        "key": "cloud.google.com/gke-accelerator", "operator": "In", "values": ["nvidia-h100-80gb"],
    }  # fmt: skip
    one = objects(attempt(Need(gpus_per_node=8), network="gpudirect_tcpx"), settings())["Job"]["spec"]["template"]
    assert "initContainers" not in one["spec"] and list(one["metadata"]["annotations"]) == ["mlperf-exp/request"]


def test_a_pod_patch_is_merged_by_names() -> None:
    conf = settings(
        pod={
            "metadata": {"annotations": {"$patch": "replace", "a": "b"}},
            "spec": {
                "hostNetwork": True,
                "tolerations": [{"operator": "Exists"}],
                "enableServiceLinks": None,
                "containers": [{"name": "job", "env": [{"name": "X", "value": "1"}]}, {"name": "side", "image": "s"}],
                "volumes": [{"name": "shm", "$patch": "delete"}],
            },
        }
    )
    template = objects(attempt(), conf)["Job"]["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["annotations"].keys() == {"a", "mlperf-exp/request"} and template["metadata"]["labels"]
    assert pod["hostNetwork"] is True and pod["tolerations"] == [{"operator": "Exists"}]
    assert "enableServiceLinks" not in pod
    assert [c["name"] for c in pod["containers"]] == ["job", "side"]
    assert pod["containers"][0]["image"] == "registry/mlperf:1" and pod["containers"][0]["env"][0]["name"] == "X"
    assert [v["name"] for v in pod["volumes"]] == ["request"]
    base = {"a": {"b": 1}}
    assert merged(base, {"d": {"$patch": "replace", "c": 2}}) == {"a": {"b": 1}, "d": {"c": 2}}
    assert merged(base, {"a": {"$patch": "replace", "c": 2}}) == {"a": {"c": 2}} and base == {"a": {"b": 1}}


def test_a_dry_run_needs_no_cluster_and_is_yaml_to_apply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    text = _kubernetes.connect(settings(namespace="team")).render(attempt(A30, f"name={NASTY}"))
    assert list(yaml.safe_load_all(text)) == manifests(attempt(A30, f"name={NASTY}"), settings(), "team")
    assert "&id" not in text


@pytest.mark.parametrize(
    ("backend", "secrets", "key"),
    [
        ({"image": " "}, [], "image"),
        ({"volumes": [Volume("data", claim="x")]}, [], "volumes"),
        ({"volumes": [Volume("/data")]}, [], "volumes"),
        ({"volumes": [Volume("/data", claim="x", host_path="/y")]}, [], "volumes"),
        ({}, ["HF_TOKEN"], "secret"),
        ({"shared_files": True}, [], "shared_files"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(backend: dict[str, Any], secrets: list[str], key: str) -> None:
    conf = settings(**backend)
    conf.secrets = secrets
    with pytest.raises(UserError) as error:
        check_settings(conf)
    assert error.value.key == f"hydra.launcher.backend.{key}"


def node(name: str, product: str = "NVIDIA-A30", gpus: str = "1", cpu: str = "15500m", memory: str = "60Gi") -> Any:
    room = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": gpus} if gpus else {})}
    labels = {"nvidia.com/gpu.product": product} if product else {}
    return {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"allocatable": room}}


@pytest.mark.parametrize(
    ("need", "nodes", "told"),
    [
        (A30, [node("a"), node("b")], None),
        (Need(), [node("a", "", "")], None),
        (Need(nodes=2, gpus_per_node=1, gpu="NVIDIA A30"), [node("a"), node("b")], None),
        (Need(nodes=2, gpus_per_node=1, gpu="NVIDIA A30"), [node("a")], "wants 2 nodes, and 1 suit"),
        (A30, [node("a", gpus="")], "no node has the resource nvidia.com/gpu"),
        (A30, [node("a", "NVIDIA-L40S")], "NVIDIA-A30, and there are NVIDIA-L40S"),
        (Need(gpus_per_node=2, gpu="NVIDIA A30"), [node("a")], "wants 2 nvidia.com/gpu on a node, and the largest"),
        (Need(cpus=16), [node("a")], "wants 16 cpu on a node, and the largest that suits has 15.5 cpu"),
        (Need(memory_gib=64), [node("a")], "64 GiB of memory on a node, and the largest that suits has 60 GiB"),
    ],
)
def test_nodes_that_do_not_suffice_are_told_before_anything_waits(
    need: Need, nodes: list[Any], told: str | None
) -> None:
    if told is None:
        check_nodes(attempt(need).spec, settings(), nodes)
        return
    with pytest.raises(UserError) as error:
        check_nodes(attempt(need).spec, settings(), nodes)
    assert told in str(error.value) and "check_nodes=false" in str(error.value)


def test_a_job_above_the_namespace_s_quota_is_refused() -> None:
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1", "pods": "5"}}}
    check_quota("team", settings(), [attempt(A30).spec], [quota])
    with pytest.raises(UserError, match=r"wants 2 of nvidia\.com/gpu, and the quota 'gpus' of 'team' allows 1"):
        check_quota("team", settings(), [attempt(Need(nodes=2, gpus_per_node=1)).spec], [quota])
    assert [number(text) for text in ("500m", "8Gi", "2", "1e3", "4k")] == [0.5, 8 * 2**30, 2, 1000, 4000]


JOB: dict[str, Any] = {
    "metadata": {"name": "x", "uid": "j", "labels": {}},
    "spec": {"parallelism": 1, "completions": 1},
    "status": {},
}


def pod(uid: str = "p", phase: str = "Running", state: Any = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {"name": f"pod-{uid}", "uid": uid, "labels": {}, **more.pop("metadata", {})},
        "spec": {"nodeName": "n1", "containers": [{"name": "job", "resources": {"limits": {"memory": "1Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "job", "state": state or {"running": {}}}], **more},
    }
    return made


def looked(ready: bool | None = True, now: float = 0.0, events: str = "") -> Look:
    return Look(lambda _: ready, lambda: events, image_timeout_s=300, now=now)


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for x"}]


@pytest.mark.parametrize(
    ("found", "kind", "told"),
    [
        (pod(), Kind.running, ""),
        (pod(phase="Succeeded", state=ended(0)), Kind.succeeded, ""),
        (pod(phase="Failed", state=ended(7)), Kind.failed, ""),
        (pod(phase="Failed", state=ended(137, "OOMKilled")), Kind.failed, "OOMKilled on n1: .* its limit of 1Gi"),
        (pod(phase="Failed", reason="Evicted", message="low on disk"), Kind.preempted, "Evicted on n1: low on disk"),
        (pod(phase="Failed", state=ended(143), conditions=DISRUPTED), Kind.preempted, "ByScheduler on n1: for x"),
        (pod(phase="Failed", reason="NodeLost"), Kind.lost, "NodeLost on n1"),
        (pod(phase="Failed", reason="DeadlineExceeded", state=ended(137)), Kind.timeout, "DeadlineExceeded"),
        (pod(phase="Pending", state=waiting("ContainerCreating")), Kind.queued, "ContainerCreating"),
        (
            pod(phase="Pending", conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: cpu"}
            ]),
            Kind.queued, "Unschedulable: 0/2 nodes: cpu",
        ),
    ],
)  # fmt: skip
def test_a_pod_s_status_says_whom_to_blame(found: dict[str, Any], kind: Kind, told: str) -> None:
    if found["status"].get("conditions", [{}])[0].get("type") == "PodScheduled":
        found["status"]["containerStatuses"] = []
    state = state_of(JOB, [found], History(), looked())
    assert state.kind is kind
    assert (not told and not state.reason) or re.search(told, state.reason), state.reason


def test_an_image_that_does_not_exist_is_fatal_with_the_first_reason() -> None:
    history = History()
    first = pod(phase="Pending", state=waiting("ErrImagePull", 'failed to pull "x:1": not found'))
    assert not state_of(JOB, [first], history, looked(now=0.0)).fatal
    later = pod(phase="Pending", state=waiting("ImagePullBackOff", 'Back-off pulling image "x:1"'))
    state = state_of(JOB, [later], history, looked(now=2.0))
    assert state.fatal and state.reason == 'ImagePullBackOff: failed to pull "x:1": not found'


def test_an_image_that_is_slow_or_a_registry_that_is_away_is_waited_for() -> None:
    history = History()
    away = pod(phase="Pending", state=waiting("ErrImagePull", "dial tcp: i/o timeout"))
    assert not state_of(JOB, [away], history, looked(now=0.0)).fatal
    assert not state_of(JOB, [away], history, looked(now=299.0)).fatal
    assert state_of(JOB, [away], history, looked(now=301.0)).fatal
    assert state_of(JOB, [pod()], history, looked(now=302.0)).kind is Kind.running


def test_a_pod_that_was_deleted_or_replaced_ends_the_attempt() -> None:
    history = History()
    assert state_of(JOB, [pod("first")], history, looked()).kind is Kind.running
    state = state_of(JOB, [pod("second", phase="Pending", state=waiting("ContainerCreating"))], history, looked())
    assert (state.kind, state.reason) == (Kind.preempted, "its pod on n1 was deleted")
    assert replacement(pod("second"), history)  # whose log would hand back files as if they were this attempt's
    assert not replacement(pod("first"), history)
    assert not replacement(pod("first"), History())


@pytest.mark.parametrize("later_first", [False, True])
def test_a_pod_on_a_lost_node_is_not_hidden_by_the_one_in_its_place(later_first: bool) -> None:
    history = History()
    state_of(JOB, [pod("first")], history, looked())
    gone = pod("first", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30})
    pods = [pod("second", phase="Pending"), gone] if later_first else [gone, pod("second", phase="Pending")]
    state = state_of(JOB, pods, copy.deepcopy(history), looked(ready=False))
    assert (state.kind, state.reason) == (Kind.lost, "the node n1 does not answer any more")
    state = state_of(JOB, pods, history, looked(ready=True))
    assert (state.kind, state.reason) == (Kind.preempted, "its pod on n1 was deleted")


@pytest.mark.parametrize(
    ("ready", "now", "kind"), [(False, 1, Kind.lost), (True, 1, Kind.running), (True, 99, Kind.lost)]
)
def test_a_pod_whose_deletion_nobody_finishes_is_on_a_lost_node(ready: bool, now: float, kind: Kind) -> None:
    history = History()
    gone = pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30})
    state_of(JOB, [gone], history, looked(now=0.0))
    assert state_of(JOB, [gone], history, looked(ready=ready, now=now)).kind is kind


def test_a_job_that_somebody_deleted_is_cancelled_once_its_pods_have_ended() -> None:
    history = History()
    assert state_of(None, [pod()], history, looked()).kind is Kind.running
    assert state_of(None, [], history, looked()).kind is Kind.cancelled


def test_a_job_without_a_pod_says_why() -> None:
    history = History()
    assert state_of(JOB, [], history, looked(now=0.0)).reason == "no pod yet"
    state = state_of(JOB, [], history, looked(now=9.0, events="FailedCreate: exceeded quota: gpus"))
    assert state == State(Kind.queued, "FailedCreate: exceeded quota: gpus")
    held = copy.deepcopy(JOB)
    held["spec"]["suspend"], held["metadata"]["labels"] = True, {"kueue.x-k8s.io/queue-name": "a30"}
    assert "admitted by Kueue's queue a30" in state_of(held, [], history, looked()).reason


class Response:
    """A log that breaks off after some bytes, as connections do."""

    def __init__(self, data: bytes, breaks: bool) -> None:
        self.data, self.breaks = data, breaks

    def stream(self, size: int) -> Iterator[bytes]:
        for i in range(0, len(self.data), 7):
            yield self.data[i : i + 7]
        if self.breaks:
            raise ConnectionResetError

    def close(self) -> None:
        pass


class Kept:
    def __init__(self) -> None:
        self.data = b""

    def write(self, name: str, data: bytes) -> None:
        self.data += data


def test_a_log_is_whole_and_without_doubles_over_broken_connections() -> None:
    # Two lines of one time stamp on both sides of a break.
    stamps = ["10.1", "10.2", "10.2", "10.2", "10.3", "11.0", "11.0", "12.5"]
    lines = [f"2026-11-24T23:50:{stamp}00000000Z line {i}\n".encode() for i, stamp in enumerate(stamps)]
    opened: list[tuple[int | None, bool]] = []

    def reopen(since: int | None, follow: bool) -> Response:
        opened.append((since, follow))
        if len(opened) == 2:
            raise Unreachable("restarting")
        if len(opened) < 4:
            cut = (3, 0, 6)[len(opened) - 1]
            return Response(b"".join(lines[:cut]) + lines[cut][:9], breaks=True)
        return Response(b"".join(lines), breaks=False)

    log = Kept()
    follower = Follower("n1", log, reopen, lambda: len(opened) >= 3)
    until = time.monotonic() + 20
    while len(log.data.splitlines()) < len(lines) and time.monotonic() < until:
        time.sleep(0.02)
    follower.finish(5)
    assert log.data.decode().splitlines() == [f"line {i}" for i in range(len(lines))]
    assert opened[0] == (None, True) and all(since and since > 0 for since, _ in opened[1:])


def test_a_log_that_says_it_is_whole_is_not_asked_for_more() -> None:
    lines = [f"2026-11-24T23:50:1{i}.000000000Z line {i}\n".encode() for i in range(5)]
    opened: list[bool] = []

    def reopen(since: int | None, follow: bool) -> Response:
        opened.append(follow)
        return Response(b"".join(lines), breaks=False)

    log = Kept()
    follower = Follower("n1", log, reopen, lambda: False, lambda: b"line 2" in log.data)
    follower.finish(5)
    assert log.data.decode().splitlines() == ["line 0", "line 1", "line 2"]
    assert opened == [True]


class Server:
    """Stands for the API: what was asked, and no collections where the account may not delete them."""

    def __init__(self, collections: bool, pods: Sequence[str] = ()) -> None:
        self.collections, self.pods, self.asked = collections, list(pods), list[str]()

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        self.asked.append(f"{method} {path.removeprefix('/api/v1/').removeprefix('/apis/batch/v1/')}")
        if method == "GET":
            return {"items": [{"metadata": {"name": name}} for name in self.pods]}
        if query:
            if not self.collections:
                raise Refused(403, "may not deletecollection")
            self.pods = []
        elif path.rpartition("/")[2] in self.pods:
            self.pods.remove(path.rpartition("/")[2])
        else:
            raise Refused(404, "not found")
        return {}


def test_attempts_are_removed_together_and_one_by_one_where_the_role_allows_no_more() -> None:
    spec = JobSpec(0, (), (), Path("/sweep/0"))
    attempts = [Attempt(spec, i, f"u{i}") for i in (1, 2)]
    server = Server(True, ["p1", "p2"])
    _kubernetes_removal.remove(server, "team", attempts)  # type: ignore[arg-type]
    assert server.asked == [
        "DELETE namespaces/team/jobs", "DELETE namespaces/team/pods", "GET namespaces/team/pods",
    ]  # fmt: skip
    server = Server(False, ["p1", "p2"])
    _kubernetes_removal.remove(server, "team", attempts)  # type: ignore[arg-type]
    assert [asked for asked in server.asked if asked.count("/") == 3] == [
        "DELETE namespaces/team/jobs/u1", "DELETE namespaces/team/jobs/u2",
        "DELETE namespaces/team/pods/p1", "DELETE namespaces/team/pods/p2",
    ]  # fmt: skip


def test_what_ends_while_others_run_is_removed_and_a_failure_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    spec = JobSpec(0, (), (), Path("/sweep/0"))
    taken: list[str] = []
    first = threading.Event()

    def remove(attempts: Sequence[Attempt]) -> None:
        taken.extend(attempt.uid for attempt in attempts)
        if taken[-1] == "last":
            raise Unreachable("no route")
        first.set()

    remover = Remover(remove)
    remover.add(Attempt(spec, 1, "a"))
    remover.add(Attempt(spec, 1, "b"))
    assert first.wait(10)
    assert taken == ["a", "b"]
    remover.add(Attempt(spec, 1, "last"))
    remover.close()
    assert taken[2:] == ["last"] * 3
    assert "these Jobs could not be removed: last: no route" in capfd.readouterr().err
    Remover(remove).close()  # nothing was there


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {token: secret-token}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
"""


def test_the_client_logs_in_and_its_generated_classes_stay_out(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    code = (
        "import sys\n"
        "from hydra_plugins.mlperf_launchers._kubernetes_api import Api, core\n"
        "from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesBackend\n"
        f"api = Api(KubernetesBackend(kubeconfig={str(tmp_path / 'config')!r}))\n"
        "print(api._login(), core('a b', 'pods', 'x/y'))\n"
        "print(len([name for name in sys.modules if name.startswith('kubernetes.client.models.v1')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "{'authorization': 'Bearer secret-token'} /api/v1/namespaces/a%20b/pods/x%2Fy", "0",
    ]  # fmt: skip
    api = Api(KubernetesBackend(kubeconfig=str(tmp_path / "config")))
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9: "):
        api.ask("GET", "/version")
