"""The launcher ``kubernetes``: each job of a sweep is a Job. Only what composing a configuration needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher

ConfigStore.instance().store(
    group="hydra/launcher", name="kubernetes", node=KubernetesLauncherConf, provider="mlperf_launchers"
)


class KubernetesLauncher(RemoteLauncher):
    """Runs each job of a sweep as a Job of Kubernetes; see :mod:`hydra_plugins.mlperf_launchers._kubernetes`."""

    name = "kubernetes"
