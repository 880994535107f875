"""The launcher ``kubernetes``: each job of a sweep is a Job. Only what composing a configuration needs."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra_plugins.mlperf_launchers._kubernetes_config import KubernetesLauncherConf
from hydra_plugins.mlperf_launchers._launcher import RemoteLauncher
from omegaconf import OmegaConf

_node = OmegaConf.structured(KubernetesLauncherConf)
for _free in (_node.backend.pod, _node.backend.node_selector):  # their keys are Kubernetes' own: no plus sign is needed
    OmegaConf.set_struct(_free, False)
ConfigStore.instance().store(group="hydra/launcher", name="kubernetes", node=_node, provider="mlperf_launchers")


class KubernetesLauncher(RemoteLauncher):
    """Runs each job of a sweep as a Job of Kubernetes; see :mod:`hydra_plugins.mlperf_launchers._kubernetes`."""

    name = "kubernetes"
