"""The launcher ``slurm``: each job of a sweep is a job of Slurm. Only what composing a configuration needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf

ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmLauncherConf, provider="mlperf_launchers")


class SlurmLauncher(RemoteLauncher):
    """Runs each job of a sweep by ``sbatch``; see :mod:`hydra_plugins.mlperf_launchers._slurm`."""

    name = "slurm"
