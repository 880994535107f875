"""The launcher ``torchx``: jobs through TorchX's runner, to any of its schedulers. Only what composing needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher
from hydra_plugins.mlperf_launchers._torchx_config import TorchxLauncherConf

ConfigStore.instance().store(
    group="hydra/launcher", name="torchx", node=TorchxLauncherConf, provider="mlperf_launchers"
)


class TorchxLauncher(RemoteLauncher):
    """Runs each job of a sweep as a TorchX application; see :mod:`hydra_plugins.mlperf_launchers._torchx`."""

    name = "torchx"
