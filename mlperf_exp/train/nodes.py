"""A node's place among those of a training run, by torchrun's environment; imports no torch.

A command is run on each node, once or (as torchrun and the launchers may do) once for every GPU: the first process of
a node starts and watches the node's ranks, and the others have nothing to do.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from mlperf_exp.config import Hardware
from mlperf_exp.errors import UserError

_START = "Start it by a launcher (hydra/launcher=slurm) or on each node by torchrun --nnodes={count} --nproc-per-node=1"


@dataclass(frozen=True, slots=True)
class Nodes:
    """A node among those of the run; ``address`` and ``port`` are the first node's."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @classmethod
    def from_environment(cls, count: int) -> Nodes:
        """From torchrun's variables: GROUP_RANK (or RANK, of one process a node), MASTER_ADDR, MASTER_PORT."""
        if count == 1:
            return cls(port=free_port())
        environment = os.environ
        rank = int(environment.get("GROUP_RANK", environment.get("RANK", "0")))
        port = int(environment["MASTER_PORT"])
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself listens there
            port += 1
        return cls(rank, count, environment["MASTER_ADDR"], port)


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of a command this is: the first on a node watches its ranks, the first of all keeps the record."""

    first_on_node: bool
    first: bool


def place(hw: Hardware) -> Place:
    """The place of the process that asks.

    Raises:
        UserError: the environment tells of other nodes than the profile has.
    """
    environment = os.environ
    world = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    told = max(1, world // max(1, local)) if "WORLD_SIZE" in environment else 1
    if told != hw.nodes:
        known = f"tells of {told}" if "WORLD_SIZE" in environment else "tells of no others (WORLD_SIZE is not set)"
        raise UserError(
            "hw.nodes",
            f"{hw.name} has {hw.nodes} node{'s' if hw.nodes > 1 else ''}, and the environment {known}",
            _START.format(count=hw.nodes) if told == 1 else f"Give hw.nodes={told}, or a profile of so many nodes",
        )
    if hw.nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        raise UserError("hw.nodes", "the environment lacks MASTER_ADDR or MASTER_PORT", _START.format(count=hw.nodes))
    on_node = int(environment.get("LOCAL_RANK", "0")) == 0
    group = int(environment.get("GROUP_RANK", str(int(environment.get("RANK", "0")) // max(1, local))))
    return Place(on_node, on_node and group == 0)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
