"""TorchX's application for an attempt: one role with a replica a node, as TorchX's own ``dist.ddp`` builds it.

The replicas run ``_node``, which gives the processes torchrun's environment. TorchX substitutes macros in arguments and
variables, and Slurm cuts variables at commas: what is to run travels in a file, or as JSON with its dollar signs
escaped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers._cluster import Attempt, dumps
from hydra_plugins.mlperf_launchers._files import REQUEST
from hydra_plugins.mlperf_launchers._torchx_config import Scheduler, TorchxLauncherConf
from torchx.specs import AppDef, AppDryRunInfo, Resource, Role, macros
from torchx.specs.builders import parse_mounts

ROLE = "node"
_VARIABLE = "MLPERF_EXP_REQUEST"
_RANK = "MLPERF_EXP_RANK"


def request_of(settings: TorchxLauncherConf, attempt: Attempt, shared_files: bool) -> dict[str, Any]:
    """What ``_node`` is to run."""
    folder = str(attempt.folder) if shared_files else f"{settings.backend.node_dir.rstrip('/')}/{attempt.uid}"
    cwd = settings.backend.cwd or (None if settings.backend.image else str(Path.cwd()))
    return attempt.request(settings, folder, _python(settings), cwd)


def application(settings: TorchxLauncherConf, attempt: Attempt, shared_files: bool) -> tuple[AppDef, dict[str, Any]]:
    """The application, and the options of its scheduler."""
    need = attempt.spec.need
    env = {_RANK: macros.replica_id}
    if shared_files:
        source = str(attempt.folder / REQUEST).replace("$", "$$")
    else:
        source = f"env:{_VARIABLE}"
        env[_VARIABLE] = dumps(request_of(settings, attempt, shared_files)).replace("$", "\\u0024")
    args = ["-m", "hydra_plugins.mlperf_launchers._node", source, "--rank-env", _RANK]
    args += ["--master-env", macros.rank0_env]
    if not shared_files:
        args.append("--handback")
    role = Role(
        # Slurm's jobs are named by their role.
        name=attempt.uid if settings.backend.scheduler is Scheduler.slurm else ROLE,
        image=settings.backend.image or str(Path.cwd()),
        entrypoint=_python(settings),
        args=args,
        env=env,
        num_replicas=need.nodes,
        resource=Resource(
            cpu=need.cpus or -1,
            gpu=need.gpus_per_node,
            memMB=-1 if need.memory_gib is None else round(need.memory_gib * 1024),
        ),
        mounts=parse_mounts([part for mount in settings.backend.mounts for part in mount.split(",")]),
        metadata={"kubernetes": {"V1Pod": settings.backend.pod}} if settings.backend.pod else {},
    )
    options = dict(settings.backend.cfg)
    if settings.backend.scheduler is Scheduler.local_cwd:
        options.setdefault("log_dir", str(attempt.folder / "torchx"))
    elif settings.backend.scheduler is Scheduler.local_docker and settings.secrets:
        options["copy_env"] = [*options.get("copy_env", []), *settings.secrets]
    elif settings.backend.scheduler is Scheduler.kubernetes:
        options.setdefault("validate_spec", False)  # the server validates what is submitted, and dryrun needs none
    return AppDef(attempt.uid, [role]), options


def mend(info: AppDryRunInfo[Any], settings: TorchxLauncherConf, attempt: Attempt) -> None:
    """Change TorchX's request where the launcher's promises need it."""
    if settings.backend.scheduler is Scheduler.slurm:
        _mend_slurm(info, settings, attempt)
    elif settings.backend.scheduler is Scheduler.kubernetes:
        _mend_kubernetes(info, settings, attempt)


def _python(settings: TorchxLauncherConf) -> str:
    return settings.python or ("python" if settings.backend.image else sys.executable)


def _mend_slurm(info: AppDryRunInfo[Any], settings: TorchxLauncherConf, attempt: Attempt) -> None:
    """No second run behind our back, the GPUs' type, and all output in the attempt's folder."""
    need = attempt.spec.need
    for replica in info.request.replicas.values():
        options = replica.sbatch_opts
        options.pop("requeue", None)
        options["no-requeue"] = None
        options.update(settings.backend.sbatch)
        for name in ("gpus-per-node", "gpus-per-task"):
            if need.gpu_type is not None and name in options:
                options[name] = f"{need.gpu_type}:{options[name]}"
    info.request.cmd.append(f"--chdir={attempt.folder}")


def _mend_kubernetes(info: AppDryRunInfo[Any], settings: TorchxLauncherConf, attempt: Attempt) -> None:
    """The attempt's own name, so that a second submission is refused; variables from a Secret."""
    from kubernetes.client.models import V1EnvVar, V1EnvVarSource, V1SecretKeySelector

    info.request.resource["metadata"]["name"] = attempt.uid
    for task in info.request.resource["spec"]["tasks"]:
        for name in settings.secrets:
            key = V1SecretKeySelector(name=settings.backend.secret, key=name)
            source = V1EnvVarSource(secret_key_ref=key)
            task["template"].spec.containers[0].env.append(V1EnvVar(name=name, value_from=source))
