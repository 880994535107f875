"""Whether jobs can run on this Slurm, before one is queued: by ``sbatch --test-only``, and a look at their files."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, LaunchError, Need, Unreachable
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf

from mlperf_exp.errors import UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers._slurm import Slurm


def preflight(settings: SlurmLauncherConf, jobs: Sequence[JobSpec], slurm: Slurm) -> None:
    """See :meth:`_cluster.Cluster.preflight`."""
    _secrets(settings.secrets)
    for job in jobs:
        _files(settings, job)
    _accounting()
    partitions = _partitions()
    if settings.backend.partition is not None and settings.backend.partition not in partitions:
        raise UserError(
            "hydra.launcher.backend.partition",
            f"there is no partition {settings.backend.partition}",
            f"Allowed: {', '.join(sorted(partitions))}",
        )
    kinds: dict[Need, JobSpec] = {}
    for job in jobs:
        kinds.setdefault(job.need, job)
    for job in kinds.values():
        _test(job, slurm, partitions)


def _test(job: JobSpec, slurm: Slurm, partitions: dict[str, set[str]]) -> None:
    """Slurm's own word on a job, with nothing submitted."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as script:
        script.write(slurm.render(Attempt(job, 1, "mlperf-preflight")))
        script.flush()
        try:
            slurm.sbatch("--test-only", script.name)
        except UserError as error:
            if "configuration" in error.problem or "gres" in error.problem.lower() or "generic" in error.problem:
                there = "; ".join(f"{name}: {', '.join(sorted(gres))}" for name, gres in sorted(partitions.items()))
                raise UserError(error.key, error.problem, f"{error.remedy}. There is: {there}") from None
            raise
        except LaunchError as error:
            raise UserError(
                "hydra/launcher", f"Slurm refuses job {job.number}: {error}", "Ask for what it has"
            ) from error


def _accounting() -> None:
    from hydra_plugins.mlperf_launchers._slurm import asked

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


def _partitions() -> dict[str, set[str]]:
    """Each partition's generic resources, as ``2 nodes of gpu:a30:1``."""
    from hydra_plugins.mlperf_launchers._slurm import asked

    found: dict[str, set[str]] = {}
    for line in asked("sinfo", "--noheader", "--format=%R|%D|%c|%G").splitlines():
        name, nodes, cpus, gres = line.split("|", 3)
        had = re.sub(r"\(S:[^)]*\)|\(null\)", "", gres)
        found.setdefault(name, set()).add(f"{nodes} nodes of {cpus} CPUs{f' and {had}' if had else ''}")
    return found


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
