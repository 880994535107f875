"""Whether jobs can run on this Slurm, before one is queued: by ``sbatch --test-only``, and a look at their files."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, LaunchError, Need, Unreachable
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf
from hydra_plugins.mlperf_launchers._slurm_jobs import asked

from mlperf_exp.errors import UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers._slurm import Slurm


def preflight(settings: SlurmLauncherConf, jobs: Sequence[JobSpec], slurm: Slurm) -> None:
    """See :meth:`_cluster.Cluster.preflight`."""
    _secrets(settings.secrets)
    for job in jobs:
        _files(settings, job)
    _accounting()
    partitions, default = _partitions()
    if settings.backend.partition is not None and settings.backend.partition not in partitions:
        raise UserError(
            "hydra.launcher.backend.partition",
            f"there is no partition {settings.backend.partition}",
            f"Allowed: {', '.join(sorted(partitions))}",
        )
    partition = partitions.get(settings.backend.partition or default)
    if partition and settings.timeout_s is not None and settings.timeout_s > partition.limit_s:
        raise UserError(
            "hydra.launcher.timeout_s",
            f"{settings.timeout_s:g} s is longer than a job may take in partition {partition.name}",
            f"Give at most {partition.limit_s:g} (sinfo -o '%P %l')",
        )
    kinds: dict[Need, JobSpec] = {}
    for job in jobs:
        kinds.setdefault(job.need, job)
    for job in kinds.values():
        _test(job, slurm, partitions)


def _test(job: JobSpec, slurm: Slurm, partitions: dict[str, Partition]) -> None:
    """Slurm's own word on a job, with nothing submitted."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as script:
        script.write(slurm.render(Attempt(job, 1, "mlperf-preflight")))
        script.flush()
        try:
            slurm.sbatch("--test-only", script.name)
        except UserError as error:
            if "configuration" in error.problem or "gres" in error.problem.lower() or "generic" in error.problem:
                there = "; ".join(f"{name}: {', '.join(sorted(one.nodes))}" for name, one in sorted(partitions.items()))
                raise UserError(error.key, error.problem, f"{error.remedy}. There is: {there}") from None
            raise
        except LaunchError as error:
            raise UserError(
                "hydra/launcher", f"Slurm refuses job {job.number}: {error}", "Ask for what it has"
            ) from error


def _accounting() -> None:
    match = re.search(r"^AccountingStorageType\s*=\s*(\S+)", asked("scontrol", "show", "config"), re.MULTILINE)
    if match is None or match[1] in ("accounting_storage/none", "(null)"):
        raise UserError(
            "hydra/launcher",
            "this Slurm keeps no accounting (AccountingStorageType), without which a job's end cannot be told for sure",
            "Have slurmdbd set up: see docs/slurm.md",
        )
    try:
        asked("sacct", "--noheader", "--allocations", "--starttime=now")
    except Unreachable as error:
        raise UserError("hydra/launcher", f"sacct does not answer: {error}", "See that slurmdbd runs") from None


@dataclass(slots=True)
class Partition:
    """What ``sinfo`` says of one: its nodes as ``2 nodes of 4 CPUs and gpu:a30:1``, the longest that a job may take."""

    name: str
    limit_s: float
    nodes: set[str] = field(default_factory=set)


def _partitions() -> tuple[dict[str, Partition], str]:
    """All partitions, and the name of the default one."""
    found: dict[str, Partition] = {}
    default = ""
    for line in asked("sinfo", "--noheader", "--format=%P|%l|%D|%c|%G").splitlines():
        name, limit, nodes, cpus, gres = line.split("|", 4)
        if name.endswith("*"):
            default = name = name[:-1]
        had = re.sub(r"\(S:[^)]*\)|\(null\)", "", gres)
        partition = found.setdefault(name, Partition(name, _seconds(limit)))
        partition.nodes.add(f"{nodes} nodes of {cpus} CPUs{f' and {had}' if had else ''}")
    return found, default


def _seconds(limit: str) -> float:
    """Slurm's ``[days-]hours:minutes:seconds``, or minutes and seconds; anything else is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _secrets(names: Sequence[str]) -> None:
    for name in names:
        if name not in os.environ:
            raise UserError("hydra.launcher.secrets", f"{name} is not set here", f"Set it: export {name}=...")


def _files(settings: SlurmLauncherConf, job: JobSpec) -> None:
    """Paths that a job reads are looked for here, since the file system is shared."""
    if settings.backend.local_paths:
        return
    for key in ("model.path", "dataset.path"):
        value = job.facts.get(key)
        if not isinstance(value, str) or "://" in value or value.startswith("builtin:") or Path(value).exists():
            continue
        if key == "model.path" and job.facts.get("model.weights") == "dummy":
            continue
        if key == "model.path" and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            _hub(value)
        elif not (key == "model.path" and job.facts.get("backend.name") in ("openai", "simulated")):
            raise UserError(
                key,
                f"{Path(value).absolute()} does not exist",
                "Put it on the shared file system, or say hydra.launcher.backend.local_paths=true where it is on the "
                "nodes' own disks",
            )


def _hub(name: str) -> None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cached = (home / "hub" / f"models--{name.replace('/', '--')}").is_dir()
    token = (
        any(variable in os.environ for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")) or (home / "token").exists()
    )
    if name.startswith("meta-llama/") and not cached and not token:
        raise UserError(
            "model.path",
            f"{name} is gated, not in {home}, and there is no HF_TOKEN",
            "Set HF_TOKEN, or give a folder: model.path=FOLDER",
        )
