"""Slurm as a system of machines: ``sbatch``, ``squeue``, ``sacct`` and ``scancel`` as lists of words, nothing pickled.

submitit is not underneath: it pickles the job for one version of Python, keeps what it knows in the process that
submitted, and awaits jobs one after another. A job here is a script that a person can read and submit.

Accounting is required: once a job has ended, ``squeue`` forgets it within minutes, and without ``sacct`` nobody could
tell a cancelled job from one that is still to be heard of.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra_plugins.mlperf_launchers._cluster import (
    Attempt,
    JobSpec,
    Kind,
    LaunchError,
    Log,
    Need,
    State,
    Unreachable,
    dumps,
)
from hydra_plugins.mlperf_launchers._slurm_config import SlurmLauncherConf

from mlperf_exp.errors import UserError
from mlperf_exp.files import write_atomic

_ANSWER_S = 30.0
_KINDS = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"), Kind.queued
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"), Kind.running
    ),
    "COMPLETED": Kind.succeeded,
    **dict.fromkeys(("FAILED", "OUT_OF_MEMORY"), Kind.failed),
    **dict.fromkeys(("CANCELLED", "REVOKED"), Kind.cancelled),
    "PREEMPTED": Kind.preempted,
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"), Kind.lost),
    **dict.fromkeys(("TIMEOUT", "DEADLINE"), Kind.timeout),
}
# Why a job waits that will never start, whatever else ends.
_FATAL = ("BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionNodeLimit", "PartitionTimeLimit",
          "DependencyNeverSatisfied", "AccountNotAllowed", "QOSNotAllowed")  # fmt: skip
_SILENT = re.compile(
    "contact slurm|timed out|connection refused|connect failure|communication|not responding|zero bytes|"
    "slurm backup controller|sending/receiving|cannot resolve|dbd_conn|transport",
    re.IGNORECASE,
)
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
        said = _said(done)
        lower = said.lower()
        for word, (key, remedy) in _REFUSALS.items():
            if word in lower:
                raise UserError(key, f"Slurm refuses the job: {said}", remedy)
        raise LaunchError(said)

    def find(self, attempt: Attempt) -> str | None:
        """By the job's name, which is the attempt's ``uid``."""
        # sacct learns of a job a moment later than squeue.
        for command in (
            ["squeue", "--noheader", "--states=all", "--format=%A", f"--name={attempt.uid}"],
            ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobIDRaw", f"--name={attempt.uid}",
             "--starttime=now-30days"],
        ):  # fmt: skip
            found = asked(*command).split()
            if found:
                return found[0]
        return None

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """From the controller, and for what it has forgotten or does not answer, from the accounting."""
        ids = {str(attempt.id) for attempt in attempts}
        found: dict[str, State] = {}
        silent: Unreachable | None = None
        try:
            for line in asked("squeue", "--noheader", "--states=all", "--format=%A|%T|%N|%r", f"--jobs={_list(ids)}",
                              known=False).splitlines():  # fmt: skip
                name, word, nodes, reason = line.split("|", 3)
                found[name] = _state(word, reason, None, nodes)
        except Unreachable as error:
            silent = error
        open_ids = {name for name in ids if name not in found or found[name].kind.ended}
        if not open_ids:
            return found
        try:
            for line in asked("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={_list(open_ids)}",
                              "--format=JobIDRaw,State,ExitCode,NodeList,Reason").splitlines():  # fmt: skip
                name, word, code, nodes, reason = line.split("|", 4)
                told = _state(word, reason, code, nodes)
                if name not in found or told.kind.ended:
                    found[name] = told
        except Unreachable:
            if silent is not None:
                raise silent from None
        return found

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
        done = run("scancel", str(attempt.id))
        if done.returncode and "invalid job id" not in done.stderr.lower():
            raise Unreachable(_said(done))

    def remove(self, attempt: Attempt) -> None:
        """Nothing: an ended job leaves nothing, and one that was given up has been cancelled."""

    def close(self) -> None:
        """Nothing."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        UserError: it is not installed.
        Unreachable: it did not answer.
    """
    # Where this runs inside a job (an interactive session), that job's variables would be taken for options.
    env = {name: value for name, value in os.environ.items() if not re.match(r"SLURM_(?!CONF)|SBATCH_|SRUN_", name)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_S, env=env, errors="replace",
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except FileNotFoundError:
        remedy = "Run this on a machine of the cluster, a login node for instance"
        raise UserError(
            "hydra/launcher", f"{words[0]} is not installed here, so Slurm cannot be reached", remedy
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{words[0]} did not answer within {_ANSWER_S:g} s") from None
    if done.returncode and _SILENT.search(done.stderr):
        raise Unreachable(_said(done))
    return done


def asked(*words: str, known: bool = True) -> str:
    """What a command says; with ``known=False`` an unknown job is no answer and no error.

    Raises:
        Unreachable: it failed.
    """
    done = run(*words)
    if done.returncode and (known or "invalid job id" not in done.stderr.lower()):
        raise Unreachable(_said(done))
    return done.stdout


def _said(done: subprocess.CompletedProcess[str]) -> str:
    text = " ".join((done.stderr or done.stdout).split())
    text = re.sub(r"\b(sbatch|squeue|sacct|scancel|sinfo|scontrol|allocation failure): (error: )?", "", text)
    return text or f"{done.args[0]} ended with status {done.returncode}"


def _state(word: str, reason: str, code: str | None, nodes: str) -> State:
    state = word.split()[0].rstrip("+") if word else ""
    kind = _KINDS.get(state, Kind.unknown)
    why = "" if reason in ("None", "") else reason
    if kind is Kind.queued and "launch failed" in reason:
        kind = Kind.lost
    status, _, killed = (code or "").partition(":")
    exit_code = None
    if kind.ended and status.isdigit():
        exit_code = int(status) or (128 + int(killed) if killed.isdigit() and int(killed) else 0)
    if state in ("OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "NODE_FAIL"):
        why = why or state
    named = () if nodes in ("", "None assigned", "(null)") else (nodes,)
    fatal = kind is Kind.queued and reason.strip("()") in _FATAL
    return State(kind, why, exit_code, named, fatal)


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


def _list(ids: set[str]) -> str:
    return ",".join(sorted(ids))


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
