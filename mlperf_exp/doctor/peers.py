"""The nodes of one job: how their processes meet, and what they tell each other.

They meet as PyTorch's processes do, by torchrun's variables, so that what hinders training shows here. Tables and
addresses travel by gloo; one process of each node, the first, speaks for it.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the job's processes this is, by torchrun's variables; one of one without them."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    master: str
    port: int

    @classmethod
    def here(cls) -> Place:
        """By the environment."""

        def number(name: str, default: int) -> int:
            return int(os.environ.get(name, default))

        return cls(
            number("RANK", 0),
            number("WORLD_SIZE", 1),
            number("LOCAL_RANK", 0),
            number("LOCAL_WORLD_SIZE", 1),
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            number("MASTER_PORT", 29500),
        )

    @property
    def nodes(self) -> int:
        """How many nodes the job has."""
        return max(1, self.world // max(1, self.local_world))

    @property
    def node(self) -> int:
        """Which of them this is, from 0."""
        return self.rank // max(1, self.local_world)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its node."""
        return self.local_rank == 0


class Peers:
    """All processes of the job, once they have met."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def share(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; all must call it."""
        if self.place.world == 1:
            return [value]
        import torch.distributed as dist

        shared: list[Any] = [None] * self.place.world
        dist.all_gather_object(shared, value)
        return shared

    def leaders(self, value: Any) -> list[Any]:
        """Each node's value, by its number; all must call it."""
        return self.share(value)[:: max(1, self.place.local_world)]

    def wait(self) -> None:
        """Until all are here."""
        self.share(None)


@contextmanager
def met(place: Place, timeout_s: float) -> Iterator[Peers]:
    """The job's processes, met over gloo.

    Raises:
        RuntimeError, OSError: they did not meet in time.
    """
    if place.world == 1:
        yield Peers(place)
        return
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface(address(place)))
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{place.master}:{place.port}",
        rank=place.rank,
        world_size=place.world,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    try:
        yield Peers(place)
    finally:
        dist.destroy_process_group()


def address(place: Place) -> str:
    """The node's own address towards the first one."""
    target = (socket.gethostbyname(place.master), place.port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing: only the route is looked up
        return str(probe.getsockname()[0])


def interface(own: str) -> str:
    """The network interface that has an address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            return name
    return "lo"
