"""A job on several Ray nodes: the entrypoint ``python -m hydra_plugins.mlperf_launchers._ray_nodes env:NAME``.

One actor on each of as many different nodes as the job wants starts ``_node`` there, and hands its output back line by
line; the first node's is this process's own output, with the others' behind their number. Ray kills what actors have
started when this process dies. With ``--discard`` each node's folder is removed at the end; other options are passed
on to ``_node``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_READY_S = 600.0  # for the nodes to be free at the same time
_EX_TEMPFAIL = 75  # asks for another attempt


class Part:
    """One node's part, an actor: ``run`` and ``stop`` are called at the same time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def address(self) -> str:
        """The node's address for the others."""
        return str(ray.util.get_node_ip_address())

    def run(self, words: list[str], request: str, rank: int, master: str, discard: bool) -> Iterator[bytes | int]:
        """Start ``_node`` and give back its output's lines, then its exit status."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it, and a child would inherit that
        env = {**os.environ, "MLPERF_EXP_REQUEST": request, "MLPERF_EXP_RANK": str(rank), "MLPERF_EXP_MASTER": master}
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
        if self._stopped:
            self._process.terminate()
        assert self._process.stdout is not None
        # No `yield from`: Ray drives this by send(), which that would pass on to the pipe.
        while line := self._process.stdout.readline():
            yield line
        status = self._process.wait()
        if discard:
            shutil.rmtree(json.loads(request)["folder"], ignore_errors=True)
        yield status

    def stop(self) -> None:
        """Interrupt it."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()


def main() -> int:
    """Run the job on its nodes; the first exit status that is not zero, of the lowest node."""
    name = sys.argv[1].removeprefix("env:")
    request = os.environ.pop(name)
    count = int(json.loads(request)["nodes"])
    wanted: dict[str, float] = json.loads(os.environ["MLPERF_EXP_RESOURCES"])
    stopping: list[int] = []  # no lock, which a second signal would meet in the first one's handler
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    group = placement_group([wanted] * count, strategy="STRICT_SPREAD")
    waited = 0.0
    while not group.wait(1.0):
        waited += 1.0
        if stopping:
            return 130
        if waited >= _READY_S:
            print(f"mlperf_exp: no {count} Ray nodes with {wanted} each were free within {_READY_S:.0f} s", flush=True)
            return _EX_TEMPFAIL
    part: Any = ray.remote(max_concurrency=3, max_restarts=0)(Part)
    parts = [
        part.options(
            num_cpus=wanted.get("CPU", 0),
            num_gpus=wanted.get("GPU", 0),
            memory=wanted.get("memory"),
            resources={key: value for key, value in wanted.items() if key not in ("CPU", "GPU", "memory")},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote()
        for rank in range(count)
    ]
    master = ray.get(parts[0].address.remote())
    statuses: dict[int, int] = {}
    threads = [
        threading.Thread(target=_follow, args=(parts[rank], rank, request, master, statuses), daemon=True)
        for rank in range(count)
    ]
    for thread in threads:
        thread.start()
    told = False
    while any(thread.is_alive() for thread in threads):
        # A node that failed or is lost ends the others: they would wait for it for ever.
        if not told and (stopping or any(statuses.values())):
            told = True
            for other in parts:
                other.stop.remote()
        threads[0].join(0.1)
        for thread in threads[1:]:
            thread.join(0.02)
    return next((statuses[rank] for rank in sorted(statuses) if statuses[rank]), 0)


def _follow(part: Any, rank: int, request: str, master: str, statuses: dict[int, int]) -> None:
    options = ["--rank-env", "MLPERF_EXP_RANK", "--master-env", "MLPERF_EXP_MASTER"]
    words = [sys.executable, "-m", "hydra_plugins.mlperf_launchers._node", "env:MLPERF_EXP_REQUEST", *options]
    words += [option for option in sys.argv[2:] if option != "--discard"]
    discard = "--discard" in sys.argv
    prefix = b"" if rank == 0 else f"[node {rank}] ".encode()
    try:
        for reference in part.run.options(num_returns="streaming").remote(words, request, rank, master, discard):
            piece = ray.get(reference)
            if isinstance(piece, int):
                statuses[rank] = piece
                continue
            sys.stdout.buffer.write(prefix + piece)
            sys.stdout.buffer.flush()
    except ray.exceptions.RayError as error:
        line = " ".join(str(error).split())
        print(f"mlperf_exp: node {rank} is lost: {line}", flush=True)
        statuses[rank] = _EX_TEMPFAIL


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
