"""SkyPilot's task for an attempt: machines by the hardware profile, an environment by uv, ``_node`` on each node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, dumps
from hydra_plugins.mlperf_launchers._skypilot_config import SkypilotLauncherConf

from mlperf_exp.errors import UserError
from mlperf_exp.network import NETWORKS

# Hardware profiles' names of GPUs -> SkyPilot's.
ACCELERATORS = {
    "NVIDIA A30": "A30",
    "NVIDIA A100 80GB": "A100-80GB",
    "NVIDIA B200": "B200",
    "NVIDIA H100 80GB": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA L40S": "L40S",
}
_VARIABLE = "MLPERF_EXP_REQUEST"
_SLOW_NETWORKS = (None, "ethernet", "nvlink")  # between nodes, nothing that SkyPilot would have to arrange

_UV = """\
# uv, an environment, and mlperf-exp in it
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
export PATH="$HOME/.local/bin:$PATH"
[ -x .venv/bin/python ] || uv venv --python 3.11 .venv
uv pip install --python .venv/bin/python -e '.[{extra}]' -c constraints/{extra}.txt
"""
_RUN = """\
export MLPERF_EXP_MASTER="$(printf '%s\\n' "$SKYPILOT_NODE_IPS" | head -n 1)"
exec {python} -m hydra_plugins.mlperf_launchers._node env:{variable} \\
  --rank-env SKYPILOT_NODE_RANK --master-env MLPERF_EXP_MASTER
"""


def task_of(settings: SkypilotLauncherConf, attempt: Attempt) -> dict[str, Any]:
    """The task as SkyPilot reads it.

    Raises:
        UserError: SkyPilot's name for the GPU is not known.
    """
    backend, need = settings.backend, attempt.spec.need
    network = attempt.spec.facts.get("hw.network") if need.nodes > 1 else None
    resources: dict[str, Any] = {}
    if backend.infra is not None:
        resources["infra"] = backend.infra
    if need.gpus_per_node or backend.accelerators is not None:
        resources["accelerators"] = backend.accelerators or f"{_accelerator(attempt.spec)}:{need.gpus_per_node}"
    if need.cpus is not None:
        resources["cpus"] = f"{need.cpus}+"
    if need.memory_gib is not None:
        resources["memory"] = f"{need.memory_gib:g}+"
    if backend.image is not None:
        resources["image_id"] = backend.image
    if backend.network_tier is not None or network not in _SLOW_NETWORKS:
        resources["network_tier"] = backend.network_tier or "best"
    if backend.use_spot:
        resources["use_spot"] = True
    extra = backend.extra or ("cuda" if need.gpus_per_node else "cpu")
    python = settings.python or (".venv/bin/python" if backend.setup is None else "python")
    request = attempt.request(settings, folder_on_node(attempt), python, None)
    envs = dict(NETWORKS[network].env) if network in NETWORKS else {}
    task: dict[str, Any] = {
        "name": f"mlperf-{attempt.spec.number}",
        "resources": resources,
        "num_nodes": need.nodes,
        "envs": {**envs, _VARIABLE: dumps(request).replace("$", "\\u0024")},
    }
    if settings.secrets:
        task["secrets"] = dict.fromkeys(settings.secrets)
    if backend.workdir is not None:
        task["workdir"] = backend.workdir
    setup = _UV.format(extra=extra) if backend.setup is None and settings.python is None else backend.setup
    if setup:
        task["setup"] = setup
    task["run"] = _RUN.format(python=python, variable=_VARIABLE)
    return _laid_over(task, backend.task)


def _accelerator(spec: JobSpec) -> str:
    name = spec.need.gpu_type or ACCELERATORS.get(str(spec.need.gpu))
    if name is None:
        raise UserError(
            "hydra.launcher.resources.gpu_type",
            f"SkyPilot's name for {spec.need.gpu or 'the GPU'} is not known",
            "Give it as sky gpus list has it",
        )
    return name


def folder_on_node(attempt: Attempt) -> str:
    """The run's folder on a node, from the task's working directory."""
    return f"outputs/runs/{attempt.uid}"


def _laid_over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(task: Mapping[str, Any]) -> str:
    """Ready for ``sky launch``."""
    return yaml.dump(dict(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
