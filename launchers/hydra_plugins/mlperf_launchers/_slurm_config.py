"""The keys under ``hydra.launcher`` of the launcher ``slurm``."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


@dataclass
class SlurmBackend:
    """What only Slurm has, under Slurm's names."""

    partition: str | None = None  # None: the cluster's default
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes
    exclusive: bool = True  # whole nodes: a neighbour would disturb what is measured
    gres: str | None = None  # None: gpu:TYPE:COUNT from resources
    sbatch: list[str] = field(default_factory=list)  # more options of sbatch, each one word: --mail-type=END
    srun: list[str] = field(default_factory=list)  # more options of srun: --container-image=...
    setup: list[str] = field(default_factory=list)  # lines of the batch script before the job: module load cuda
    local_paths: bool = False  # data and weights are on the nodes' own disks: do not look for them here


@dataclass
class SlurmLauncherConf(RemoteLauncherConf):
    """``hydra/launcher=slurm``."""

    _target_: str = "hydra_plugins.mlperf_launchers.slurm.SlurmLauncher"
    backend: SlurmBackend = field(default_factory=SlurmBackend)
