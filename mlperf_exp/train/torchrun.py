"""A rank's place as Lightning asks for it, from torchrun's variables."""

from __future__ import annotations

import os
from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment

from mlperf_exp.train.job import Job

TIMEOUT = timedelta(seconds=180)  # of a collective: a rank that is lost without a word is noticed after so long


class Torchrun(ClusterEnvironment):
    """Ranks, world and meeting point from torchrun's variables; a lone process has none of them."""

    @property
    def creates_processes_externally(self) -> bool:
        """They are there already."""
        return True

    @property
    def local_world(self) -> int:
        """The ranks on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def main_address(self) -> str:
        """Where the ranks meet."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """Its port."""
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """All ranks."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def set_world_size(self, size: int) -> None:
        """Given by the environment."""

    def global_rank(self) -> int:
        """The rank."""
        return int(os.environ.get("RANK", "0"))

    def set_global_rank(self, rank: int) -> None:
        """Given by the environment."""

    def local_rank(self) -> int:
        """The rank's place on its node."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def node_rank(self) -> int:
        """The node's place."""
        return int(os.environ.get("GROUP_RANK", "0"))


def backend(job: Job) -> str:
    """What carries the ranks' collectives."""
    return "nccl" if job.device == "cuda" else "gloo"
