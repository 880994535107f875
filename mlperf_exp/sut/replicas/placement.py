"""A process of its own that places, starts, watches and removes replicas through Ray; the only import of ray here.

    python -m mlperf_exp.sut.replicas.placement

Requests come pickled over standard input (see :mod:`mlperf_exp.sut.replicas.placer`), events go to standard output, a
line of JSON each: ``placed``, ``started``, ``failed``, ``died``, ``renewed``, ``left``, ``lost``, ``refused``. The end
of the input is the order to remove everything. What Ray prints goes to ``ray.log``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

from mlperf_exp.errors import ExperimentError, RunFailed, UserError, missing_extra
from mlperf_exp.sut.replicas.own_ray import OwnRay
from mlperf_exp.sut.replicas.placer import Launch, Place, Renew
from mlperf_exp.sut.replicas.replica import Replica

_POLL_S = 0.2
_CONCURRENT = 4  # calls of one replica at a time: join waits in one of them


def main() -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the order to end is the end of the input
    say = _Events(os.fdopen(os.dup(1), "wb", buffering=0))
    source = sys.stdin.buffer
    place = _request(source)
    assert isinstance(place, Place)
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO)
    try:
        cluster = _Cluster(place, say)
        try:
            cluster.place()
            cluster.serve(source)
        finally:
            cluster.remove()
    except ExperimentError as error:
        say.refused(error)
    except Exception as error:  # told by the other process as the reason
        logging.exception("placement broke")
        say.refused(RunFailed(f"Ray: {type(error).__name__}: {_line(error)}"))


class _Events:
    def __init__(self, out: BinaryIO | Any) -> None:
        self._out = out

    def __call__(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):  # the other process is gone, which its closed pipe tells too
            self._out.write(json.dumps({"event": event, **facts}).encode() + b"\n")

    def refused(self, error: ExperimentError) -> None:
        self("refused", **_facts(error))


class _Cluster:
    """Ray with our placement group and actors on it."""

    def __init__(self, place: Place, say: _Events) -> None:
        try:
            import ray
        except ImportError as problem:
            raise missing_extra("ray[default]", "backend.replicas", "ray") from problem
        self._ray: Any = ray
        self._place, self._say = place, say
        self._own: OwnRay | None = None
        self._group: Any = None
        self._actors: list[Any] = []
        self._waiting: dict[Any, tuple[str, int]] = {}  # reference -> what it is of which replica
        self._lost = False

    def place(self) -> None:
        """Start or find Ray, and set room aside on the nodes.

        Raises:
            UserError, RunFailed: there is no cluster, or no room on it.
        """
        layout = self._place.layout
        self._connect()
        ray = self._ray
        bundles = [self._bundle(count) for count in layout.on_node]
        nodes = [node for node in ray.nodes() if node["Alive"]]
        fit = [n for n in nodes if all(n["Resources"].get(k, 0) >= v for k, v in bundles[0].items())]
        if len(fit) < len(bundles):
            wanted = ", ".join(f"{value:g} {name}" for name, value in bundles[0].items())
            count = "one node" if len(bundles) == 1 else f"{len(bundles)} nodes"
            raise UserError(
                "backend.replicas",
                f"{layout.replicas} replicas take {count} with {wanted}; of the Ray cluster's {len(nodes)} nodes "
                f"{len(fit) or 'none'} can give that",
                "Lower it or ray.cpus_per_replica, or start Ray on more nodes (ray start --address=...)",
            )
        from ray.util.placement_group import placement_group

        self._group = placement_group(bundles, strategy="STRICT_SPREAD")
        if not self._group.wait(self._place.timeout_s):
            raise RunFailed(
                f"the Ray cluster found no room for {layout.replicas} replicas within {self._place.timeout_s:g} s "
                "(ray.timeout_s): others use it"
            )
        from ray.util.placement_group import placement_group_table

        of_bundle = placement_group_table(self._group)["bundles_to_node_id"]
        known = {node["NodeID"]: node for node in nodes}
        chosen = [known[of_bundle[bundle]] for bundle in range(len(bundles))]
        addresses = [str(node["NodeManagerAddress"]) for node in chosen]
        names = [node["NodeManagerHostname"] for node in chosen]
        self._say("placed", nodes=names, addresses=addresses, own=_own_address(addresses))

    def _connect(self) -> None:
        place = self._place
        address = place.address
        if address is None:
            self._own = OwnRay(place.layout, place.temp, place.timeout_s)
            address = self._own.address
        try:
            self._ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            if place.address is None:
                raise RunFailed(f"Ray did not start: {_line(error)}") from error
            raise UserError(
                "ray.address",
                f"no Ray cluster can be joined at {place.address}: {_line(error)}",
                "Run on a node of the cluster (ray start), with its RAY_AUTH_MODE and RAY_AUTH_TOKEN, or leave it out",
            ) from error

    def _bundle(self, count: int) -> dict[str, float]:
        layout = self._place.layout
        wanted = {"CPU": count * layout.cpus, "GPU": float(count * layout.gpus)}
        return {name: value for name, value in wanted.items() if value} or {"CPU": 0.001}

    def serve(self, source: BinaryIO) -> None:
        """Do what is asked, and tell what becomes of the replicas, until the input ends."""
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_requests, args=(source, requests), daemon=True).start()
        while not self._is_lost():
            with contextlib.suppress(queue.Empty):
                request = requests.get(timeout=0 if self._waiting else _POLL_S)
                if request is None:
                    return
                if isinstance(request, Launch):
                    self._launch(request)
                elif isinstance(request, Renew):
                    samples = self._ray.put(request.samples)
                    for number, actor in enumerate(self._actors):
                        self._waiting[actor.reset.remote(samples)] = "renewed", number
            if self._waiting:
                done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=_POLL_S)
                for reference in done:
                    self._tell(reference, *self._waiting.pop(reference))
        while requests.get() is not None:
            pass

    def _is_lost(self) -> bool:
        """Whether the run's own Ray has lost a process, which is told once; the replicas go on without it."""
        dead = self._own.dead if self._own is not None else None
        if dead is not None:
            self._lost = True
            self._say("lost", error=f"Ray's own process {dead} ended")
        return self._lost

    def _launch(self, request: Launch) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        layout = self._place.layout
        remote = self._ray.remote(Replica)
        samples = self._ray.put(request.samples)
        for number, token in enumerate(request.tokens):
            place = PlacementGroupSchedulingStrategy(self._group, layout.node_of(number))
            actor = remote.options(
                num_cpus=layout.cpus,
                num_gpus=layout.gpus,
                scheduling_strategy=place,
                max_restarts=0,
                max_concurrency=_CONCURRENT,
            ).remote(number, request.plan, request.model, request.listens, token)
            self._actors.append(actor)
            self._waiting[actor.start.remote(samples)] = "started", number

    def _tell(self, reference: Any, what: str, number: int) -> None:
        from ray.exceptions import RayActorError, RayTaskError

        try:
            value = self._ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            self._say("failed", replica=number, what=what, **_facts(cause))
        except (RayActorError, Exception) as error:
            self._say("died", replica=number, what=what, error=_line(error))
        else:
            self._say(what, replica=number, phases=value)
            if what == "started":
                self._waiting[self._actors[number].join.remote()] = "left", number

    def remove(self) -> None:
        """Kill the actors, give the room back, and stop Ray where it is the run's own."""
        if self._lost and self._own is not None:  # nobody answers; the replicas end when the fleet hangs up
            self._own.close()
            os._exit(0)
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if self._group is not None:
            with contextlib.suppress(Exception):
                self._ray.util.remove_placement_group(self._group)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        if self._own is not None:
            self._own.close()


def _own_address(nodes: Sequence[str]) -> str:
    """The address of this host on the way to the nodes; one of theirs where it is a node and there is no other."""
    towards = {}
    for node in nodes:
        kind = socket.AF_INET6 if ":" in node else socket.AF_INET
        with socket.socket(kind, socket.SOCK_DGRAM) as way:
            way.connect((node, 9))  # sends nothing: it only asks for the route
            towards[node] = str(way.getsockname()[0])
    return next((own for node, own in towards.items() if own != node), nodes[0])


def _request(source: BinaryIO) -> Any:
    """The next request, None at the end."""
    head = source.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    data = source.read(length)
    return pickle.loads(data) if len(data) == length else None  # of our own parent


def _requests(source: BinaryIO, into: queue.SimpleQueue[Any]) -> None:
    while (request := _request(source)) is not None:
        into.put(request)
    into.put(None)


def _facts(error: BaseException) -> dict[str, Any]:
    if isinstance(error, UserError):
        return {"error": str(error), "user": [error.key, error.problem, error.remedy]}
    words = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    return {"error": _line(words)}


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:600]


if __name__ == "__main__":
    main()
