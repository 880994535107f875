"""A real Kubernetes control plane (etcd, API server, controllers, scheduler) and a pretend node for each host.

    .venv/bin/python tests/clusters/k8s.py up FOLDER       # prints the kubeconfig's path
    .venv/bin/python tests/clusters/k8s.py down FOLDER

Programs are found by ``k8s_build.sh``, which builds them once. All that is started has its process id in ``FOLDER``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.clusters.debian import gone

HERE = Path(__file__).resolve().parent
CACHE = Path(
    os.environ.get("MLPERF_CLUSTERS_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mlperf_exp", "clusters")
)
PROGRAMS = CACHE / "kubernetes-1.20.2"
PACKAGES = ("etcd-server", "kubernetes-client", "openssl", "iproute2")
GPU = {"nvidia.com/gpu.product": "NVIDIA-A30", "nvidia.com/gpu.count": "1"}
CAPACITY = {"cpu": "4", "memory": "8Gi", "pods": "40", "ephemeral-storage": "20Gi", "nvidia.com/gpu": "1"}


def missing() -> str | None:
    """Why no control plane can be started here; None where one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (PROGRAMS / "kube-scheduler").exists():
        return f"{PROGRAMS} has no programs; make test-clusters builds them"
    return gone(("etcd", "kubectl", "ip", "openssl", "nsenter", "unshare"), PACKAGES)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Kubernetes:
    """A control plane with two nodes, each of one pretend A30.

    Args:
        folder: for state and logs.
        prefix: of the hosts' names: ``k`` makes k1 and k2.
        subnet: the first three bytes of the hosts' network.
    """

    folder: Path
    prefix: str = "k"
    subnet: str = "10.98.7"
    capacity: dict[str, str] = field(default_factory=lambda: dict(CAPACITY))
    labels: dict[str, str] = field(default_factory=lambda: dict(GPU))

    def __post_init__(self) -> None:
        self.kubeconfig = self.folder / "kubeconfig"
        self.nodes = [f"{self.prefix}1", f"{self.prefix}2"]
        self.address = f"{self.subnet}.254"

    def start(self) -> None:
        """Bring everything up; returns when both nodes are ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._net("up")
        self._files()
        self._etcd()
        self.start_api()
        self._controllers()
        for i in range(len(self.nodes)):
            self.start_node(i)
        self.until(
            lambda: self.kubectl("get", "nodes", "--no-headers").count(" Ready") == len(self.nodes), "nodes ready"
        )

    def stop(self) -> None:
        """End all processes, and remove the hosts."""
        for i in range(len(self.nodes)):
            self.kill_node(i)
        for name in ("scheduler", "controllers", "api", "etcd"):
            self._kill(name, signal.SIGKILL)
        with contextlib.suppress(OSError):
            for line in {*(self.folder / "made").read_text().splitlines()}:
                os.removedirs(line)
        self._net("down")

    def start_api(self) -> None:
        """Start the API server, as after :meth:`stop_api`."""
        state = self._state()
        self._spawn(
            "api",
            [
                str(PROGRAMS / "kube-apiserver"), f"--etcd-servers={state['etcd']}", f"--secure-port={state['port']}",
                "--bind-address=0.0.0.0", f"--advertise-address={self.address}", f"--cert-dir={self.folder / 'certs'}",
                f"--service-account-key-file={self.folder / 'sa.key'}", "--service-account-issuer=https://test",
                f"--service-account-signing-key-file={self.folder / 'sa.key'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                f"--token-auth-file={self.folder / 'tokens.csv'}", "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount", "--feature-gates=EphemeralContainers=false",
            ],
        )  # fmt: skip
        self.until(lambda: self.kubectl("get", "--raw=/readyz") == "ok", "API server ready")

    def stop_api(self) -> None:
        """Stop the API server: nobody answers, pods go on."""
        self._kill("api", signal.SIGTERM)

    def start_node(self, i: int) -> None:
        """Start the kubelet of a node."""
        name, state = self.nodes[i], self._state()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        settings = {
            "node": name, "ip": f"{self.subnet}.{i + 1}", "folder": str(folder), "kubeconfig": str(self.kubeconfig),
            "address": self.address, "port": state["kubelets"] + i, "labels": self.labels, "capacity": self.capacity,
            "certificate": str(self.folder / "kubelet.crt"), "key": str(self.folder / "kubelet.key"),
            "onhost": [str(HERE / "onhost.sh"), name], "begun": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        self._spawn(name, [sys.executable, str(HERE / "kubelet.py"), str(folder / "settings.json")])

    def kill_node(self, i: int) -> None:
        """What a power cut does: the kubelet and all its pods are gone at once, and nobody is told."""
        self._kill(self.nodes[i], signal.SIGKILL)
        with contextlib.suppress(OSError):
            for pid in (self.folder / self.nodes[i] / "pids").read_text().split():
                _kill_tree(int(pid))
            (self.folder / self.nodes[i] / "pids").unlink()

    def kubectl(self, *words: str, text: str | None = None) -> str:
        """kubectl's output, stripped; empty where it fails."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *words],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip()

    def until(self, true: Any, what: str, seconds: float = 300.0) -> None:
        """Wait for something; TimeoutError names it."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not in {seconds:g} s; see the logs in {self.folder}")
            time.sleep(0.2)

    def _files(self) -> None:
        folder = self.folder
        if not (folder / "state.json").exists():
            etcd = f"http://127.0.0.1:{free_port()}"
            state = {
                "etcd": etcd,
                "peer": f"http://127.0.0.1:{free_port()}",
                "port": free_port(),
                "kubelets": free_port(),
            }
            (folder / "state.json").write_text(json.dumps(state))
        quiet = {"check": True, "capture_output": True}
        if not (folder / "sa.key").exists():
            subprocess.run(["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"], **quiet)
            subject = [
                "-subj",
                "/CN=kubelet",
                "-keyout",
                str(folder / "kubelet.key"),
                "-out",
                str(folder / "kubelet.crt"),
            ]
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", *subject], **quiet
            )
        (folder / "tokens.csv").write_text('admin-token,admin,1,"system:masters"\nnobody-token,nobody,2\n')
        for user in ("admin", "nobody"):
            self._kubeconfig(user)

    def _kubeconfig(self, user: str) -> None:
        server = f"https://127.0.0.1:{self._state()['port']}"
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
            "users": [{"name": user, "user": {"token": f"{user}-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }  # fmt: skip
        path = self.kubeconfig if user == "admin" else self.folder / f"kubeconfig.{user}"
        path.write_text(json.dumps(document))

    def _etcd(self) -> None:
        state = self._state()
        self._spawn(
            "etcd",
            [
                "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync",
                "--listen-client-urls", state["etcd"], "--advertise-client-urls", state["etcd"],
                "--listen-peer-urls", state["peer"], "--initial-advertise-peer-urls", state["peer"],
                "--initial-cluster", f"default={state['peer']}",
            ],
        )  # fmt: skip

    def _controllers(self) -> None:
        config = f"--kubeconfig={self.kubeconfig}"
        alone = ["--leader-elect=false", "--port=0", "--secure-port=0"]
        quick = ["--node-monitor-period=1s", "--node-monitor-grace-period=6s"]  # a node without a sign of life
        self._spawn("controllers", [str(PROGRAMS / "kube-controller-manager"), config, *alone, *quick])
        self._spawn("scheduler", [str(PROGRAMS / "kube-scheduler"), config, *alone])

    def _net(self, verb: str) -> None:
        subprocess.run([str(HERE / "net.sh"), verb, self.prefix, self.subnet], check=verb == "up", capture_output=True)

    def _state(self) -> Any:
        return json.loads((self.folder / "state.json").read_text())

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.folder
            )
        (self.folder / f"{name}.pid").write_text(str(process.pid))
        _CHILDREN[process.pid] = process

    def _kill(self, name: str, number: signal.Signals) -> None:
        path = self.folder / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            os.killpg(pid, number)
            child = _CHILDREN.pop(pid, None)
            if child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(10)
        path.unlink(missing_ok=True)


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


def _kill_tree(pid: int) -> None:
    """The process and all that it started, which may be in sessions of their own."""
    import psutil

    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def main() -> None:
    verb, folder = sys.argv[1], Path(sys.argv[2]).absolute()
    cluster = Kubernetes(folder)
    if verb == "up":
        if why := missing():
            sys.exit(f"k8s.py: {why}")
        cluster.start()
        print(cluster.kubeconfig)
    else:
        cluster.stop()


if __name__ == "__main__":
    main()
