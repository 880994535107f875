"""The keys under ``hydra.launcher`` of the launcher ``skypilot``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


@dataclass
class SkypilotBackend:
    """What only SkyPilot has."""

    infra: str | None = None  # gcp, k8s/CONTEXT, slurm/HOST, ...; None: the cheapest that SkyPilot finds
    accelerators: str | None = None  # SkyPilot's name and count a node, H100:8; None: by hw
    network_tier: str | None = None  # None: best where the profile's network between nodes is more than Ethernet
    image: str | None = None  # docker:IMAGE; with GPUDirect-TCPX one that holds Google's NCCL plugin
    use_spot: bool = False
    workdir: str | None = "."  # copied to each node (what git ignores is left out), and where jobs start
    extra: str | None = None  # of mlperf-exp, that uv installs from workdir; None: cuda with GPUs, cpu without
    setup: str | None = None  # shell lines before the job; None: uv, an environment and mlperf-exp in it
    autodown_minutes: int | None = (
        10  # idle time after which a cluster ends by itself, if the launcher could not end it
    )
    task: dict[str, Any] = field(default_factory=dict)  # laid over the task's YAML: resources, file_mounts, config, ...
    python: str | None = None  # where SkyPilot is installed; None: here, or behind the command `sky`


@dataclass
class SkypilotLauncherConf(RemoteLauncherConf):
    """``hydra/launcher=skypilot``: a cluster a job, taken down at its end. ``python`` None: of uv's environment."""

    _target_: str = "hydra_plugins.mlperf_launchers.skypilot.SkypilotLauncher"
    max_parallel: int = 4  # clusters at a time
    backend: SkypilotBackend = field(default_factory=SkypilotBackend)
