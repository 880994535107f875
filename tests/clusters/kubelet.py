"""A small kubelet: the pods that a real scheduler binds to one node run as processes on a pretend host.

    python kubelet.py SETTINGS.json

What it does goes through the real API server, as a kubelet's does: node status and lease, pod status, logs (with
timestamps, since, follow), exit codes, deletion with a grace period. What a process tree can stand in for is real:
commands, environment (values, fields, Secrets, ConfigMaps), volumes (ConfigMap, annotation, emptyDir, hostPath) in a
mount namespace of its own, limits of memory (by watching), several containers, sidecars. Images are names: one that
begins with ``missing`` cannot be pulled, one that begins with ``slow`` never is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import psutil
import urllib3
from kubernetes import client, config, watch

urllib3.disable_warnings()
SETTINGS = json.loads(Path(sys.argv[1]).read_text())
NODE, FOLDER = SETTINGS["node"], Path(SETTINGS["folder"])
LABELS = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", **SETTINGS["labels"]}
config.load_kube_config(SETTINGS["kubeconfig"])
CORE, LEASES = client.CoreV1Api(), client.CoordinationV1Api()
PODS: dict[str, Pod] = {}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ask(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Ask the API server until it answers; 404 and 409 are answers."""
    while True:
        try:
            return call(*args, **kwargs)
        except client.ApiException as error:
            if error.status in (404, 409, 422):
                return None
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        time.sleep(0.3)


class Container:
    """A container's process, its log, its state as the API describes it."""

    def __init__(self, pod: Pod, spec: Any, sidecar: bool) -> None:
        self.pod, self.spec, self.sidecar = pod, spec, sidecar
        self.log = pod.folder / f"{spec.name}.log"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None
        self.state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self.reason: str | None = None

    def start(self) -> None:
        command = [*(self.spec.command or []), *(self.spec.args or [])]
        inner = [
            *self.pod.mounts(self.spec),
            "exec env -i " + " ".join(map(shlex.quote, [*self.environment(), *command])),
        ]
        if self.spec.working_dir:
            inner.insert(-1, f"cd {shlex.quote(self.spec.working_dir)}")
        begun = now()
        self.process = subprocess.Popen(
            # behind the control plane and whoever submits, which on a real cluster have processors of their own
            ["nice", "-n", "10", *SETTINGS["onhost"], "unshare", "--mount", "bash", "-ec", "\n".join(inner)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        with (FOLDER / "pids").open("a") as pids:
            pids.write(f"{self.process.pid}\n")
        self.state = {"running": {"startedAt": begun}}
        threading.Thread(target=self._keep, args=(begun,), daemon=True).start()

    def environment(self) -> list[str]:
        found = {"PATH": os.environ["PATH"], "HOSTNAME": NODE, "HOME": "/root", "LANG": "C.UTF-8"}
        for each in self.spec.env or []:
            source = each.value_from
            value = each.value or ""
            if source and source.field_ref:
                value = {
                    "metadata.name": self.pod.name,
                    "metadata.namespace": self.pod.namespace,
                    "spec.nodeName": NODE,
                    "status.podIP": SETTINGS["ip"],
                }[source.field_ref.field_path]
            elif source and source.secret_key_ref:
                import base64

                data = ask(CORE.read_namespaced_secret, source.secret_key_ref.name, self.pod.namespace)
                value = base64.b64decode(data.data[source.secret_key_ref.key]).decode()
            found[each.name] = value
        return [f"{name}={value}" for name, value in found.items()]

    def _keep(self, begun: str) -> None:
        """Write the log as a container runtime does, a time stamp before each line; then the end."""
        process = self.process
        assert process is not None and process.stdout is not None
        limits = (self.spec.resources and self.spec.resources.limits) or {}
        memory = quantity(limits["memory"]) if "memory" in limits else None
        if memory:
            threading.Thread(target=self._watch_memory, args=(memory,), daemon=True).start()
        with self.log.open("ab", buffering=0) as log:
            while part := process.stdout.readline(16384):
                stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
                log.write(stamp.encode() + b" " + (part if part.endswith(b"\n") else part + b"\n"))
        code = process.wait()
        code = code if code >= 0 else 128 - code
        reason = self.reason or ("Completed" if code == 0 else "Error")
        self.state = {"terminated": {"exitCode": code, "reason": reason, "startedAt": begun, "finishedAt": now()}}
        self.pod.changed.set()

    def _watch_memory(self, limit: int) -> None:
        while self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(self.process.pid)
                if sum(p.memory_info().rss for p in [top, *top.children(recursive=True)]) > limit:
                    self.reason = "OOMKilled"
                    os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(0.1)

    def status(self) -> dict[str, Any]:
        return {
            "name": self.spec.name, "image": self.spec.image, "imageID": "", "restartCount": 0,
            "ready": "running" in self.state, "state": dict(self.state),
        }  # fmt: skip

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if number == signal.SIGKILL:
                    os.killpg(self.process.pid, number)
                else:  # as a runtime does: the container's first process only
                    first = psutil.Process(self.process.pid)
                    first.send_signal(number)


def quantity(text: str) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
    for unit, size in units.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * size)
    return int(float(text))


class Pod:
    """A pod bound to this node, from its first sight to its deletion."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.name, self.namespace = spec.spec, spec.metadata.name, spec.metadata.namespace
        self.uid, self.annotations = spec.metadata.uid, spec.metadata.annotations or {}
        self.folder = FOLDER / "pods" / self.uid
        self.folder.mkdir(parents=True)
        self.changed = threading.Event()
        self.deleting: float | None = None
        self.evicted = False
        inits = [
            Container(self, c, getattr(c, "restart_policy", None) == "Always") for c in self.spec.init_containers or []
        ]
        self.inits, self.main = inits, [Container(self, c, False) for c in self.spec.containers]
        self.started = now()
        threading.Thread(target=self.run, daemon=True).start()

    def mounts(self, spec: Any) -> list[str]:
        """Shell lines that mount the pod's volumes, in a mount namespace of its own."""
        lines = []
        for mount in spec.volume_mounts or []:
            volume = next(v for v in self.spec.volumes if v.name == mount.name)
            at = shlex.quote(mount.mount_path)
            lines.append(f"[ -e {at} ] || {{ mkdir -p {at}; echo {at} >> {FOLDER}/made; }}")
            if volume.empty_dir is not None:
                size = volume.empty_dir.size_limit or "64M"
                size = str(quantity(size))
                lines.append(f"mount -t tmpfs -o size={size},mode=1777 none {at}")
            elif volume.host_path is not None:
                lines.append(f"mount --bind {shlex.quote(volume.host_path.path)} {at}")
            else:
                lines.append(f"mount --bind {shlex.quote(str(self.projected(volume)))} {at}")
        return lines

    def projected(self, volume: Any) -> Path:
        folder = self.folder / volume.name
        folder.mkdir(exist_ok=True)
        if volume.config_map is not None:
            found = ask(CORE.read_namespaced_config_map, volume.config_map.name, self.namespace)
            for name, text in (found.data if found else {}).items():
                (folder / name).write_text(text)
        for item in volume.downward_api.items if volume.downward_api else []:
            key = item.field_ref.field_path.removeprefix("metadata.annotations['").removesuffix("']")
            (folder / item.path).write_text(self.annotations[key])
        return folder

    def missing(self) -> str | None:
        """A ConfigMap or Secret that the pod wants and that is not there."""
        for volume in self.spec.volumes or []:
            if volume.config_map and not ask(CORE.read_namespaced_config_map, volume.config_map.name, self.namespace):
                return f'configmap "{volume.config_map.name}" not found'
        for container in [*self.inits, *self.main]:
            for each in container.spec.env or []:
                source = each.value_from and each.value_from.secret_key_ref
                if source and not ask(CORE.read_namespaced_secret, source.name, self.namespace):
                    return f'secret "{source.name}" not found'
        return None

    def run(self) -> None:
        for container in [*self.inits, *self.main]:
            image = container.spec.image
            if image.startswith("missing"):
                text = (
                    f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": {image}: not found'
                )
                container.state = {"waiting": {"reason": "ErrImagePull", "message": text}}
                self.report("Pending")
                time.sleep(2)
                container.state = {
                    "waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
                }
                return self.report("Pending")
            if image.startswith("slow"):
                return self.report("Pending")
        if missing := self.missing():
            self.main[0].state = {"waiting": {"reason": "CreateContainerConfigError", "message": missing}}
            return self.report("Pending")
        for container in self.inits:
            container.start()
            if not container.sidecar:
                assert container.process is not None
                container.process.wait()
        for container in self.main:
            if self.deleting is None:
                container.start()
        self.report("Running")
        while any("terminated" not in container.state for container in self.main):
            self.changed.wait()
            self.changed.clear()
        for container in self.inits:
            container.signal(signal.SIGKILL)
        codes = [container.state["terminated"]["exitCode"] for container in self.main]
        self.report("Failed" if any(codes) or self.evicted else "Succeeded")
        return None

    def report(self, phase: str) -> None:
        ready = "True" if phase == "Running" else "False"
        status: dict[str, Any] = {
            "phase": phase, "podIP": SETTINGS["ip"], "hostIP": SETTINGS["ip"], "startTime": self.started,
            "containerStatuses": [c.status() for c in self.main],
            "initContainerStatuses": [c.status() for c in self.inits],
            "conditions": [{"type": "Ready", "status": ready}],
        }  # fmt: skip
        for container in [*status["containerStatuses"], *status["initContainerStatuses"]]:
            for state in ("running", "waiting", "terminated"):
                container["state"].setdefault(state, None)
        if self.evicted:
            status |= {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
        ask(CORE.patch_namespaced_pod_status, self.name, self.namespace, {"status": status})

    def evict(self) -> None:
        self.evicted = True
        for container in self.main:
            container.signal(signal.SIGKILL)

    def delete(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace period; then the API forgets the pod."""
        if self.deleting is not None:
            return
        self.deleting = time.monotonic()
        for container in self.main:
            container.signal(signal.SIGTERM)

        def end() -> None:
            running = [c.process for c in self.main if c.process is not None]
            while any(p.poll() is None for p in running) and time.monotonic() < self.deleting + grace_s:
                time.sleep(0.05)
            for container in [*self.main, *self.inits]:
                container.signal(signal.SIGKILL)
            time.sleep(0.5)  # as long as readers of the log may take to come to its end
            ask(CORE.delete_namespaced_pod, self.name, self.namespace, grace_period_seconds=0)

        threading.Thread(target=end, daemon=True).start()


class Logs(BaseHTTPRequestHandler):
    """GET /containerLogs/NAMESPACE/POD/CONTAINER, as the API server asks a kubelet."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        asked = {key: value[0] for key, value in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        pod = next((p for p in PODS.values() if [p.namespace, p.name] == parts[1:3]), None)
        found = [c for c in [*pod.main, *pod.inits] if c.spec.name == parts[3]] if pod and len(parts) == 4 else []
        if parts[0] != "containerLogs" or not found:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        since = time.time() - float(asked["sinceSeconds"]) if "sinceSeconds" in asked else 0.0
        with contextlib.suppress(OSError), found[0].log.open("rb") as log:
            while True:
                over = "terminated" in found[0].state
                if data := b"".join(self.lines(log, since, asked.get("timestamps") == "true")):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()
                elif asked.get("follow") != "true" or over:
                    break
                else:
                    time.sleep(0.05)
            self.wfile.write(b"0\r\n\r\n")
        return None

    @staticmethod
    def lines(log: Any, since: float, stamps: bool) -> Any:
        while line := log.readline():
            if not line.endswith(b"\n"):
                log.seek(-len(line), os.SEEK_CUR)
                return
            stamp, _, text = line.partition(b" ")
            if datetime.fromisoformat(stamp.decode()[:26] + "+00:00").timestamp() >= since:
                yield line if stamps else text


def heartbeat() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
    while True:
        stamp = {"lastHeartbeatTime": now(), "lastTransitionTime": SETTINGS["begun"]}
        ask(CORE.patch_node_status, NODE, {"status": {"conditions": [ready | stamp]}})
        spec = {
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 6, "renewTime": now().replace("Z", ".000000Z")}
        }
        ask(LEASES.patch_namespaced_lease, NODE, "kube-node-lease", spec)
        if (FOLDER / "evict").exists():
            (FOLDER / "evict").unlink()
            for pod in list(PODS.values()):
                pod.evict()
        time.sleep(1)


def serve() -> None:
    server = ThreadingHTTPServer((SETTINGS["address"], SETTINGS["port"]), Logs)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SETTINGS["certificate"], SETTINGS["key"])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    serve()
    ask(CORE.create_node, {"metadata": {"name": NODE, "labels": LABELS}})
    status = {
        "capacity": SETTINGS["capacity"],
        "allocatable": SETTINGS["capacity"],
        "addresses": [{"type": "InternalIP", "address": SETTINGS["address"]}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": SETTINGS["port"]}},
    }
    ask(CORE.patch_node_status, NODE, {"status": status})
    ask(
        LEASES.create_namespaced_lease,
        "kube-node-lease",
        {"metadata": {"name": NODE}, "spec": {"holderIdentity": NODE}},
    )
    threading.Thread(target=heartbeat, daemon=True).start()
    while True:
        with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError, OSError):
            seen = set()
            selector = f"spec.nodeName={NODE}"
            listed = CORE.list_pod_for_all_namespaces(field_selector=selector)
            for pod in listed.items:
                seen.add(pod.metadata.uid)
                look(pod)
            for gone in [uid for uid in PODS if uid not in seen]:
                PODS.pop(gone).delete(0)
            version = listed.metadata.resource_version
            events = watch.Watch().stream(
                CORE.list_pod_for_all_namespaces,
                field_selector=selector,
                resource_version=version,
                timeout_seconds=60,
                _request_timeout=(2, 65),
            )
            for event in events:
                if event["type"] == "DELETED":
                    pod = PODS.pop(event["object"].metadata.uid, None)
                    if pod is not None:
                        pod.delete(0)
                else:
                    look(event["object"])
        time.sleep(0.2)


def look(pod: Any) -> None:
    uid = pod.metadata.uid
    if pod.metadata.deletion_timestamp is not None:
        if uid in PODS:
            PODS[uid].delete(pod.metadata.deletion_grace_period_seconds or 0)
        else:
            ask(CORE.delete_namespaced_pod, pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0)
    elif uid not in PODS and pod.status.phase == "Pending":
        PODS[uid] = Pod(pod)


if __name__ == "__main__":
    tempfile.tempdir = str(FOLDER)
    main()
