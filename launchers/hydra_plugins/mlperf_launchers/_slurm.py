"""Slurm as a system of machines: ``sbatch``, ``squeue``, ``sacct`` and ``scancel`` as lists of words, nothing pickled.

submitit is not underneath: it pickles the job for one version of Python, keeps what it knows in the process that
submitted, and awaits jobs one after another. A job here is a script that a person can read and submit.

Accounting is required: once a job has ended, ``squeue`` forgets it within minutes, and without ``sacct`` nobody could
tell a cancelled job from one that is still to be heard of.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra_plugins.mlperf_launchers import _slurm_jobs
from hydra_plugins.mlperf_launchers._cluster import (
    Attempt,
    JobSpec,
    LaunchError,
    Log,
    Need,
    State,
    dumps,
)
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf
from hydra_plugins.mlperf_launchers._slurm_jobs import run, said

from mlperf_exp.errors import UserError
from mlperf_exp.files import write_atomic

_REFUSALS = {  # a word of Slurm's refusal -> the key, the remedy
    "partition": ("hydra.launcher.backend.partition", "Name one that sinfo shows"),
    "account": ("hydra.launcher.backend.account", "Name one that sacctmgr show associations user=$USER shows"),
    "qos": ("hydra.launcher.backend.qos", "Name one that sacctmgr show qos shows"),
    "gres": ("hydra.launcher.resources.gpu_type", "Name one that sinfo -o %G shows"),
    "generic resource": ("hydra.launcher.resources.gpu_type", "Name one that sinfo -o %G shows"),
    "time limit": ("hydra.launcher.timeout_s", "Give less than the partition's limit (sinfo -o '%P %l')"),
    "node configuration": ("hydra.launcher.resources", "Ask for what one partition has (sinfo -o '%P %D %c %m %G')"),
    "node count": ("hydra.launcher.resources.nodes", "Ask for as many as the partition has (sinfo)"),
    "nodes required": ("hydra.launcher.resources.nodes", "Ask for as many as the partition has (sinfo)"),
    "memory": ("hydra.launcher.resources.memory_gib", "Ask for what a node has (sinfo -o '%P %m')"),
    "cpu count": ("hydra.launcher.resources.cpus", "Ask for what a node has (sinfo -o '%P %c')"),
    "limit": ("hydra/launcher", "Ask for less, or for more from the administrators"),
    "unrecognized option": ("hydra.launcher.backend.sbatch", "Give options that sbatch --help shows"),
    "invalid option": ("hydra.launcher.backend.sbatch", "Give options that sbatch --help shows"),
}


def connect(settings: SlurmLauncherConf) -> Slurm:
    """The Slurm that the commands on this machine speak to."""
    return Slurm(settings)


class Slurm:
    """A :class:`_cluster.Cluster`."""

    shared_files = True
    poll_s = 2.0  # the end of a job is seen in its own status; this is for what it cannot say itself
    submits_at_once = 1
    told_by_log = removes_later = False

    def __init__(self, settings: SlurmLauncherConf) -> None:
        self._settings = settings
        self._read: dict[Path, int] = {}  # how much of each log was passed on

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        """Let Slurm itself judge one job of each kind, and look for what jobs read; see ``_cluster``."""
        from hydra_plugins.mlperf_launchers._slurm_preflight import preflight

        preflight(self._settings, jobs, self)

    def render(self, attempt: Attempt) -> str:
        """The batch script."""
        settings, backend, need, folder = self._settings, self._settings.backend, attempt.spec.need, attempt.folder
        python = settings.python or sys.executable
        options = [
            f"--job-name={attempt.uid}",
            f"--output={_pattern(folder / 'slurm.log')}",
            f"--chdir={Path.cwd()}",
            "--no-requeue",  # a requeued job would run again in the same folder
            f"--nodes={need.nodes}",
            f"--ntasks={need.nodes}",
            "--ntasks-per-node=1",
            *_resources(need, backend.gres),
            *([f"--time={_minutes(settings)}"] if settings.timeout_s is not None else []),
            *(
                f"--{name}={value}"
                for name in ("partition", "account", "qos", "constraint", "exclude")
                if (value := getattr(backend, name)) is not None
            ),
            *(["--exclusive"] if backend.exclusive else []),
            *backend.sbatch,
        ]
        step = [
            "srun",
            "--kill-on-bad-exit=1",
            "--cpu-bind=none",  # one task a node, which starts others: it has all that the job has
            f"--output={_pattern(folder)}/node-%n-%N.log",
            *([f"--cpus-per-task={need.cpus}"] if need.cpus else []),
            *backend.srun,
            python,
            "-m",
            "hydra_plugins.mlperf_launchers._node",
            "env:MLPERF_EXP_REQUEST",
            "--rank-env=SLURM_NODEID",
            "--master-env=MLPERF_EXP_MASTER",
        ]
        request = attempt.request(settings, str(folder), python, str(Path.cwd()))
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {_option(option)}" for option in options),
            *backend.setup,
            'MLPERF_EXP_MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"MLPERF_EXP_REQUEST={shlex.quote(dumps(request))}",
            "export MLPERF_EXP_MASTER MLPERF_EXP_REQUEST",
            f"exec {shlex.join(step)}",
        ]
        return "\n".join(lines) + "\n"

    def submit(self, attempt: Attempt) -> str:
        """``sbatch``; see ``_cluster``."""
        script = attempt.folder / "job.sbatch"
        try:
            write_atomic(script, self.render(attempt), synced=False)  # sbatch takes a copy at once
        except OSError as error:
            raise LaunchError(f"{error.filename}: {error.strerror}") from error
        return self.sbatch("--parsable", str(script)).split(";")[0].strip()

    def sbatch(self, *words: str) -> str:
        """What sbatch says.

        Raises:
            UserError: it refuses the job.
            LaunchError: it fails for another reason.
            Unreachable: no answer.
        """
        done = run("sbatch", *words)
        if done.returncode == 0:
            return done.stdout + done.stderr
        text = said(done)
        lower = text.lower()
        for word, (key, remedy) in _REFUSALS.items():
            if word in lower:
                raise UserError(key, f"Slurm refuses the job: {text}", remedy)
        raise LaunchError(text)

    def find(self, attempt: Attempt) -> str | None:
        """By the job's name, which is the attempt's ``uid``."""
        return _slurm_jobs.named(attempt.uid)

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """From the controller, and for what it has forgotten or does not answer, from the accounting."""
        return _slurm_jobs.states({str(attempt.id) for attempt in attempts})

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """From the files that ``srun`` writes, one a node; at the end also what the batch script said."""
        for path in sorted(attempt.folder.glob("node-*.log")):
            self._pass_on(path, path.stem.split("-", 2)[-1], log)
        if final:
            self._pass_on(attempt.folder / "slurm.log", "slurm", log)

    def _pass_on(self, path: Path, node: str, log: Log) -> None:
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                while data := file.read(1 << 20):
                    self._read[path] = self._read.get(path, 0) + len(data)
                    log.write(node, data)
        except FileNotFoundError:
            return

    def fetch(self, attempt: Attempt) -> None:
        """Nothing: the file system is shared."""

    def cancel(self, attempt: Attempt) -> None:
        """``scancel``: SIGTERM, and SIGKILL after the cluster's KillWait."""
        _slurm_jobs.cancel(str(attempt.id))

    def remove(self, attempt: Attempt) -> None:
        """Nothing: an ended job leaves nothing, and one that was given up has been cancelled."""

    def close(self) -> None:
        """Nothing."""


def _resources(need: Need, gres: str | None) -> list[str]:
    options = []
    if gres is not None:
        options.append(f"--gres={gres}")
    elif need.gpus_per_node:
        kind = need.gpu_type or gpu_type(need.gpu)
        options.append(f"--gres=gpu:{f'{kind}:' if kind else ''}{need.gpus_per_node}")
    if need.cpus:
        options.append(f"--cpus-per-task={need.cpus}")
    if need.memory_gib:
        options.append(f"--mem={math.ceil(need.memory_gib * 1024)}M")
    return options


def gpu_type(gpu: str | None) -> str | None:
    """Slurm's usual word for a GPU: ``NVIDIA A30`` is a30."""
    words = [word for word in (gpu or "").lower().split() if word not in ("nvidia", "amd", "tesla")]
    return words[0] if words else None


def _minutes(settings: SlurmLauncherConf) -> int:
    # The node ends the job in time; Slurm's own limit is for one whose node does not.
    assert settings.timeout_s is not None
    return math.ceil((settings.timeout_s + settings.grace_s + 60) / 60)


def _pattern(path: Path) -> str:
    """A path in which Slurm finds nothing to replace."""
    return str(path).replace("\\", "\\\\").replace("%", "%%")


def _option(text: str) -> str:
    """An option on a line of ``#SBATCH``, which has quotes and backslashes, and no newlines."""
    name, equals, value = text.partition("=")
    if re.fullmatch(r"[\w@%+=:,./-]*", value):
        return text
    if "\n" in value:
        raise UserError("hydra/launcher", f"{name} would hold a line break: {value!r}", "Use another folder")
    return f'{name}{equals}"{value}"' if '"' not in value else f"{name}{equals}'{value}'"
