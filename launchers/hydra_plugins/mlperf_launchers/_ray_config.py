"""The keys under ``hydra.launcher`` of the launcher ``ray``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


@dataclass
class RayBackend:
    """What only Ray has: a cluster that is there already."""

    address: str | None = None  # of its dashboard, http://HEAD:8265; None: $RAY_API_SERVER_ADDRESS
    working_dir: str | None = None  # uploaded, and where jobs start; None: mlperf_exp is installed on the nodes
    cwd: str | None = None  # where jobs start, on the node; None: where Ray starts them
    shared_files: bool = False  # True: the nodes see the sweep's folder under the same path
    node_dir: str = "/tmp/mlperf_exp"  # else a node keeps a run here until its files are handed back
    autoscales: bool = False  # True: machines come on demand, so do not refuse what none of now can hold
    entrypoint_resources: dict[str, float] = field(default_factory=dict)  # more of Ray's resources, by name
    runtime_env: dict[str, Any] = field(default_factory=dict)  # more of Ray's runtime environment: pip, image_uri, ...


@dataclass
class RayLauncherConf(RemoteLauncherConf):
    """``hydra/launcher=ray``. ``python`` None: ``python`` as the nodes find it."""

    _target_: str = "hydra_plugins.mlperf_launchers.ray.RayLauncher"
    backend: RayBackend = field(default_factory=RayBackend)
