"""The launcher ``skypilot``: each job of a sweep on a cluster of its own. Only what composing a configuration needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher
from hydra_plugins.mlperf_launchers._skypilot_config import SkypilotLauncherConf

ConfigStore.instance().store(
    group="hydra/launcher", name="skypilot", node=SkypilotLauncherConf, provider="mlperf_launchers"
)


class SkypilotLauncher(RemoteLauncher):
    """Runs each job of a sweep as a SkyPilot task; see :mod:`hydra_plugins.mlperf_launchers._skypilot`."""

    name = "skypilot"
