"""How many replicas of an engine a hardware profile has room for, and how they are spread over its nodes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlperf_exp.config import Config, Device, SimulatedBackend, VllmBackend
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Derived, Plan

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")  # vLLM's; GPUs of one engine


@dataclass(frozen=True, slots=True)
class Layout:
    """``on_node[i]`` replicas go to node ``i``, each with ``gpus`` GPUs of its own and ``cpus`` processors."""

    on_node: tuple[int, ...]
    gpus: int
    cpus: float

    @property
    def replicas(self) -> int:
        """How many there are on all nodes."""
        return sum(self.on_node)

    def node_of(self, replica: int) -> int:
        """The place of a replica's node."""
        for node, count in enumerate(self.on_node):
            if replica < count:
                return node
            replica -= count
        raise IndexError("there are not so many replicas")


def layout(plan: Plan) -> Layout:
    """Where the plan's replicas go: evenly over the profile's nodes; all on this machine without a cluster."""
    config = plan.config
    nodes = min(config.hw.nodes if config.ray.address else 1, config.backend.replicas)
    each, more = divmod(config.backend.replicas, nodes)
    counts = tuple(each + (node < more) for node in range(nodes))
    return Layout(counts, gpus_each(config, plan.engine), config.ray.cpus_per_replica)


def gpus_each(config: Config, engine: dict[str, Any]) -> int:
    """GPUs of one replica."""
    if config.hw.device is Device.cpu or isinstance(config.backend, SimulatedBackend):
        return 0
    return _workers(engine) if isinstance(config.backend, VllmBackend) else 1


def _workers(engine: dict[str, Any]) -> int:
    """Over how many devices vLLM spreads one engine."""
    return math.prod(int(engine.get(name, 1)) for name in PARALLEL)


def settle(config: Config, engine: dict[str, Any], derived: list[Derived]) -> None:
    """Fill in ``backend.replicas``, or refuse what the profile has no room for.

    Raises:
        UserError: there are not so many GPUs.
    """
    backend, hw = config.backend, config.hw
    gpus = gpus_each(config, engine)
    room = hw.nodes * (hw.gpus_per_node // gpus) if gpus else None
    if backend.replicas is None:
        if isinstance(backend, SimulatedBackend) or (hw.device is Device.cpu and hw.nodes == 1):
            backend.replicas = 1
            return
        backend.replicas = max(1, room if room is not None else hw.nodes)
        if backend.replicas > 1:
            each = f"of {gpus} GPU{'s' if gpus > 1 else ''} each" if gpus else "one a node"
            why = f"as many engines {each} as {hw.name} has room for" if gpus else f"{each}: {hw.name} has {hw.nodes}"
            derived.append(Derived("backend.replicas", backend.replicas, why))
    elif room is not None and backend.replicas > room:
        raise UserError(
            "backend.replicas",
            f"{backend.replicas} replicas of {gpus} GPU{'s' if gpus > 1 else ''} each do not fit on {hw.name}, which "
            f"has {hw.nodes * hw.gpus_per_node} GPUs",
            f"Give at most {room}" if room else "Lower backend.engine.tensor_parallel_size",
        )
    _keep_on_node(config, engine, derived)


def _keep_on_node(config: Config, engine: dict[str, Any], derived: list[Derived]) -> None:
    """In a Ray actor vLLM would ask Ray for its workers' GPUs, which the actor itself holds."""
    several = isinstance(config.backend, VllmBackend) and (config.backend.replicas or 1) > 1
    if several and _workers(engine) > 1 and "distributed_executor_backend" not in engine:
        engine["distributed_executor_backend"] = "mp"
        why = "a replica's workers are processes on its own node, with the GPUs that Ray gave it"
        derived.append(Derived("backend.engine.distributed_executor_backend", "mp", why))
