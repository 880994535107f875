"""The launcher ``ray``: jobs on a Ray cluster, through its job submission API. Only what composing needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher
from hydra_plugins.mlperf_launchers._ray_config import RayLauncherConf

ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="mlperf_launchers")


class RayLauncher(RemoteLauncher):
    """Runs each job of a sweep as a Ray job; see :mod:`hydra_plugins.mlperf_launchers._ray`."""

    name = "ray"
