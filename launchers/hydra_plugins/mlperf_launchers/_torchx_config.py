"""The keys under ``hydra.launcher`` of the launcher ``torchx``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


class Scheduler(Enum):
    """TorchX's schedulers that this launcher was tried with."""

    local_cwd = "local_cwd"  # processes on this machine
    local_docker = "local_docker"  # containers on this machine
    slurm = "slurm"
    kubernetes = "kubernetes"  # a Volcano job


@dataclass
class TorchxBackend:
    """What only TorchX has."""

    scheduler: Scheduler = Scheduler.local_cwd
    cfg: dict[str, Any] = field(
        default_factory=dict
    )  # the scheduler's options (`torchx runopts`): partition, queue, ...
    image: str | None = None  # with mlperf_exp inside; local_docker and kubernetes need one
    mounts: list[str] = field(default_factory=list)  # as TorchX has them: "type=bind,src=/data,dst=/data,readonly"
    cwd: str | None = None  # where jobs start, on the node; None: here, or where the image says
    shared_files: bool | None = None  # the nodes see the sweep's folder under its path; None: yes without an image
    node_dir: str = "/tmp/mlperf_exp"  # else a node keeps a run here until its files are handed back
    sbatch: dict[str, str] = field(default_factory=dict)  # slurm: more options of sbatch, by their long names
    pod: dict[str, Any] = field(default_factory=dict)  # kubernetes: laid over each pod: spec: {tolerations: ...}
    secret: str | None = None  # kubernetes: the Secret that holds what hydra.launcher.secrets names


@dataclass
class TorchxLauncherConf(RemoteLauncherConf):
    """``hydra/launcher=torchx``. ``python`` None: the image's, or this one."""

    _target_: str = "hydra_plugins.mlperf_launchers.torchx.TorchxLauncher"
    max_parallel: int = 1  # its first scheduler is this machine; more for Slurm and Kubernetes
    backend: TorchxBackend = field(default_factory=TorchxBackend)
