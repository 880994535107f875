"""A real Ray of two pretend hosts (network namespaces), a node on each, with token authentication."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.hosts import Hosts, two_hosts

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
PORT = 6379


@dataclass
class RayHosts:
    """A Ray head on ``head`` and a worker on ``worker``, which alone has the resource ``second``."""

    hosts: Hosts
    token: str
    folder: Path

    @property
    def head(self) -> str:
        return self.hosts.names[0]

    @property
    def worker(self) -> str:
        return self.hosts.names[1]

    @property
    def subnet(self) -> str:
        return self.hosts.subnet

    @property
    def address(self) -> str:
        """Of the head's dashboard."""
        return f"http://{self.subnet}.1:8265"

    @property
    def gcs(self) -> str:
        """Where the cluster is joined."""
        return f"{self.subnet}.1:{PORT}"

    def words(self, host: str, *words: str) -> list[str]:
        """The command line that runs these words on a host."""
        return self.hosts.on(host, *words)

    def on(self, host: str, *words: str, tries: int = 1) -> None:
        ray = self.words(host, sys.executable, "-m", "ray.scripts.scripts", *words)
        with tempfile.TemporaryFile() as out:  # no pipes: the daemons would hold them open
            for _ in range(tries):
                out.truncate(0)
                done = subprocess.run(ray, stdout=out, stderr=out, check=False, timeout=240, env=self.env())
                if done.returncode == 0:
                    return
                if tries > 1:
                    self.kill(host)
            out.seek(0)
            raise AssertionError(out.read().decode())

    def env(self) -> dict[str, str]:
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **QUIET}

    def start_head(self) -> None:
        ports = [f"--port={PORT}", f"--dashboard-host={self.subnet}.1", "--dashboard-port=8265"]
        size = ["--num-cpus=2", "--num-gpus=0", f"--temp-dir={self.folder}"]
        # Ray gives its agents 15 s to start, which a busy machine may not keep.
        self.on(self.head, "start", "--head", f"--node-ip-address={self.subnet}.1", *size, *ports, tries=3)

    def start_worker(self) -> None:
        resources = ["--num-cpus=2", "--num-gpus=0", '--resources={"second": 2}']
        at = f"--node-ip-address={self.subnet}.2"
        self.on(self.worker, "start", f"--address={self.gcs}", at, *resources, tries=3)

    def processes(self, host: str) -> list[int]:
        """What runs on a host: whatever is in its network."""
        done = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def kill(self, host: str) -> None:
        for pid in self.processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_on_two_hosts(letter: str) -> Iterator[RayHosts]:
    """The hosts and their Ray while the block runs; ``letter`` tells them from those of other tests."""
    if os.environ.get("MLPERF_TEST_CLUSTERS") != "1":
        pytest.skip("starts a Ray of two hosts and takes minutes: make test-clusters runs it")
    with two_hosts(letter) as hosts:
        folder = Path(f"/tmp/ray-{hosts.prefix}")  # sockets' paths must be short
        made = RayHosts(hosts, secrets.token_hex(32), folder)
        try:
            made.start_head()
            made.start_worker()
            yield made
        finally:
            for host in hosts.names:
                made.kill(host)
            subprocess.run(["rm", "-rf", str(folder)], check=False)
