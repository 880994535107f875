"""A Ray of this run's own on this machine: no dashboard, in a folder of its own, gone when it is closed."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from typing import Any

import psutil

from mlperf_exp.errors import RunFailed
from mlperf_exp.layout import Layout

_log = logging.getLogger(__name__)

_OBJECTS = 1 << 28  # bytes of the object store: samples on their way to the replicas


class OwnRay:
    """One node that is head and worker, made as ``ray.cluster_utils`` makes it, with what replicas need and no more.

    Ray gives its node 30 s to start, which a busy machine may not keep: it is tried again while there is time.

    Raises:
        RunFailed: it did not start within ``timeout_s``.
    """

    def __init__(self, layout: Layout, folder: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        tries = 0
        while True:
            tries += 1
            try:
                self._node: Any = _start(layout, f"{folder}/{tries}")
                break
            except Exception as error:  # Ray's own has no narrower kind
                _end_children()
                words = " ".join(str(error).split())[:300]
                _log.warning("Ray did not start, try %d: %s", tries, words)
                if time.monotonic() > deadline:
                    raise RunFailed(f"Ray did not start within {timeout_s:g} s (ray.timeout_s): {words}") from error

    @property
    def address(self) -> str:
        """Where it is joined."""
        return str(self._node.gcs_address)

    @property
    def dead(self) -> str | None:
        """Its first process that has ended, by Ray's name for it; None while all run."""
        return next((str(kind) for kind, _ in self._node.dead_processes()), None)

    def close(self) -> None:
        """End all its processes."""
        with contextlib.suppress(Exception):
            self._node.kill_all_processes(check_alive=False, allow_graceful=False)
        _end_children()


def _start(layout: Layout, folder: str) -> Any:
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # Ports that are named: else Ray's node waits, 15 s at most, for its agents to tell theirs.
    agent, listen, environment = _free_ports(3)
    params = RayParams(
        num_cpus=max(1, math.ceil(layout.replicas * layout.cpus)),
        num_gpus=layout.replicas * layout.gpus,
        object_store_memory=_OBJECTS,
        node_ip_address="127.0.0.1",
        temp_dir=folder,
        min_worker_port=0,
        max_worker_port=0,
        metrics_agent_port=agent,
        dashboard_agent_listen_port=listen,
        runtime_env_agent_port=environment,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
    )
    return Node(params, head=True, shutdown_at_exit=True, spawn_reaper=True)


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=5)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in opened:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in opened]
