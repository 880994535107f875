"""The keys under ``hydra.launcher`` that all launchers to other machines share."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hydra.types import RunMode
from hydra_plugins.mlperf_launchers._config import LauncherConf


class Fault(Enum):
    """Faults of the machines and not of the run: those after which the same job may be tried again."""

    preempted = "preempted"  # the scheduler took the machines away
    node_lost = "node_lost"  # a node failed, or the scheduler knows nothing of the job any more
    launch_error = "launch_error"  # it could not be submitted or started
    exit_75 = "exit_75"  # the job says by its exit status (EX_TEMPFAIL) that it should be tried again


class RunOn(Enum):
    """On which of a job's nodes its command runs."""

    first = "first"  # on one; the others are there for what it starts itself
    each = "each"  # on each, once for every GPU (once without any), in torchrun's environment


@dataclass
class Resources:
    """What one job wants. None: as the job's hardware profile ``hw`` has it, or the system's default."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_type: str | None = None  # as the system names it: a30, nvidia-h100-80gb, H100
    cpus: int | None = None  # of one node
    memory_gib: float | None = None  # of one node


@dataclass
class Retries:
    """How often a job is tried again, each attempt in a folder of its own. A job's own failure never is."""

    max: int = 2
    on: list[Fault] = field(default_factory=lambda: list(Fault))


@dataclass
class RemoteLauncherConf(LauncherConf):
    """What every launcher to other machines understands."""

    # conf/config.yaml makes this hydra.mode: without it Hydra would ignore a launcher where no -m is given.
    mode: RunMode = RunMode.MULTIRUN
    max_parallel: int = 32  # jobs in the system's queue at a time, running or not
    resources: Resources = field(default_factory=Resources)
    run_on: RunOn | None = None  # None: each for training on several nodes, first for all else
    queue_timeout_s: float | None = None  # from submission to the job's first sign of life; None: no limit
    unknown_grace_s: float = 120.0  # how long a job's state may be unknown before it counts as lost
    grace_s: float = 20.0  # how long an interrupted job may take to keep what it has
    retries: Retries = field(default_factory=Retries)
    secrets: list[str] = field(default_factory=list)  # names of variables; values never leave the environment
    python: str | None = None  # the interpreter on the nodes; None: this one, or the image's
    dryrun: bool = False  # print what would be submitted, and submit nothing
    keep: bool = False  # leave what was created on the system (jobs, clusters) for a look
