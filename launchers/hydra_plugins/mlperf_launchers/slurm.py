"""The launcher ``slurm``: each job of a sweep is a job of Slurm. Only what composing a configuration needs."""

from __future__ import annotations

from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher, register
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf

register("slurm", SlurmLauncherConf)


class SlurmLauncher(RemoteLauncher):
    """Runs each job of a sweep by ``sbatch``; see :mod:`hydra_plugins.mlperf_launchers._slurm`."""

    name = "slurm"
