"""What a launcher has to know of a system of machines: the contract between :mod:`_driver` and Slurm, Kubernetes, ...

A launcher ``x`` is a light module ``x.py`` (its configuration, see ``slurm.py``) and a heavy one ``_x.py`` with

    def connect(settings: XLauncherConf) -> Cluster

which the driver, and later ``python -m mlperf_exp.jobs``, call. The driver decides everything that is the same
everywhere: how many jobs at once, time limits, retries, signals, logs on the terminal, which result counts. A cluster
only submits, looks, fetches and removes; it keeps no state that another process could not find again from
``Attempt.id``.

What runs on a node is always the same command (see ``_node.py``)

    python -m hydra_plugins.mlperf_launchers._node REQUEST [--rank-env NAME] [--master-env NAME] [--handback]

It writes ``status.json`` into the attempt's folder: the job's own word, which the driver trusts first.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from hydra_plugins.mlperf_launchers._remote_config import Fault, RemoteLauncherConf, RunOn

from mlperf_exp.track.tracker import LATER, absolute_uri


class Kind(Enum):
    """Where the system says that an attempt stands."""

    queued = "queued"  # accepted; its command does not run yet (also: pulling an image, provisioning)
    running = "running"
    succeeded = "succeeded"
    failed = "failed"  # by its own exit status, or killed for what it did (out of memory)
    cancelled = "cancelled"  # by somebody
    preempted = "preempted"
    lost = "lost"  # a node failed; the system could not start it
    timeout = "timeout"  # the system's own time limit
    unknown = "unknown"  # the system answers, and cannot tell (now)

    @property
    def ended(self) -> bool:
        """Whether nothing of the attempt runs any more."""
        return self not in (Kind.queued, Kind.running, Kind.unknown)

    @property
    def fault(self) -> Fault | None:
        """Which fault of the machines this is; None where it is none."""
        return {Kind.preempted: Fault.preempted, Kind.lost: Fault.node_lost}.get(self)


@dataclass(frozen=True, slots=True)
class State:
    """The system's word on an attempt: the second witness."""

    kind: Kind
    reason: str = ""  # in the system's own words: why it waits, why it ended
    exit_code: int | None = None
    nodes: tuple[str, ...] = ()
    fatal: bool = False  # queued, and waiting will never help: an image that does not exist, a request too large


@dataclass(frozen=True, slots=True)
class Need:
    """What a job wants of the machines, with ``hw`` filled in. ``nodes`` is at least 1, ``gpus_per_node`` may be 0.

    ``gpu_type`` is the user's word in the system's own language; where it is None, a system derives it from ``gpu``,
    the profile's ``hw.gpu`` (``NVIDIA A30``), or leaves the type open.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    gpu: str | None = None
    cpus: int | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job as plain data: all that is needed to run it, now or from ``jobs.json`` by another process.

    ``arguments`` stand behind the interpreter: ``-m mlperf_exp``, then the overrides, each one word, to be passed as a
    list and never through a shell; without the run's folder, which each attempt adds. ``facts`` are the composed values
    that a preflight wants to see, by key (``model.path``, ``dataset.path``, ``hw.network``, ...: see ``_FACTS`` in
    ``_remote.py``); empty for applications other than mlperf_exp.
    """

    number: int
    overrides: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: Path
    need: Need = Need()
    run_on: RunOn = RunOn.first
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in ``jobs.json``."""
        return {
            "number": self.number,
            "overrides": list(self.overrides),
            "arguments": list(self.arguments),
            "folder": str(self.folder),
            "need": asdict(self.need),
            "run_on": self.run_on.name,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """The reverse."""
        return cls(
            data["number"],
            tuple(data["overrides"]),
            tuple(data["arguments"]),
            Path(data["folder"]),
            Need(**data["need"]),
            RunOn[data["run_on"]],
            data["facts"],
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job, in a folder of its own on the submitting side.

    ``uid`` names it on the system: lower-case letters, digits and dashes, at most 40, the same in every process, and
    different for every attempt of every sweep.
    """

    spec: JobSpec
    number: int  # from 1
    uid: str
    id: str | None = None  # the system's name for it, once submitted

    @property
    def folder(self) -> Path:
        """Where its results are, or will be fetched to: the job's folder, or one beside it for later attempts."""
        own = self.spec.folder
        return own if self.number == 1 else own.with_name(f"{own.name}.{self.number}")

    @property
    def name(self) -> str:
        """For messages and log prefixes: ``3``, or ``3.2`` for the second attempt."""
        return str(self.spec.number) if self.number == 1 else f"{self.spec.number}.{self.number}"

    def submitted(self, name: str) -> Attempt:
        """The same, with the system's name for it."""
        return replace(self, id=name)

    def request(self, settings: RemoteLauncherConf, folder: str, python: str, cwd: str | None) -> dict[str, Any]:
        """What ``_node`` reads, as JSON.

        Args:
            settings: the launcher's keys.
            folder: where the run is to be kept, as the node sees it (``str(self.folder)`` on a shared file system).
            python: the interpreter on the node.
            cwd: the working directory on the node; None: the one that the system starts in.
        """
        return {
            "schema": 1,
            "uid": self.uid,
            "job": self.spec.number,
            "attempt": self.number,
            "command": [python, *self.spec.arguments, f"hydra.run.dir={quoted(folder)}"],
            "folder": folder,
            "cwd": cwd,
            "env": self._tracking() | settings.env,
            "secrets": list(settings.secrets),
            "nodes": self.spec.need.nodes,
            "processes_per_node": max(1, self.spec.need.gpus_per_node) if self.spec.run_on is RunOn.each else 1,
            "run_on": self.spec.run_on.name,
            "timeout_s": settings.timeout_s,
            "grace_s": settings.grace_s,
        }

    def _tracking(self) -> dict[str, str]:
        """Lets the node leave MLflow to this side: it may reach none, or share a database file with other nodes."""
        facts = self.spec.facts
        if not facts.get("tracking.enabled") or "sweep" not in facts:
            return {}
        return {LATER: json.dumps({"sweep": facts["sweep"], "uri": absolute_uri(facts["tracking.uri"])})}


class Unreachable(Exception):
    """The system does not answer now (its controller is restarting, no network). The driver asks again."""


class LaunchError(Exception):
    """The system broke while it took or started the attempt: a fault of the machines (``Fault.launch_error``)."""


class Log(Protocol):
    """Where a cluster passes on what an attempt printed. It may be called from any thread."""

    @property
    def complete(self) -> bool:
        """Whether the first node has handed back all files by it, after which that node prints nothing."""

    def write(self, node: str, data: bytes) -> None:
        """``data`` as it came, in order for each node; need not end at a line's end."""


class Cluster(Protocol):
    """A system of machines. Methods may block for as long as the system takes, and are called from several threads.

    All but ``preflight`` and ``render`` raise :class:`Unreachable` where the system does not answer. They must not wait
    for longer than about 30 s for an answer; ``submit`` may take minutes where it provisions machines.
    """

    shared_files: bool  # the nodes see the sweep's folder under the same path; else ``fetch`` brings results
    submits_at_once: int  # calls of ``submit`` at a time; 1 keeps the jobs' order in the system's queue
    told_by_log: bool  # one node's attempt is over once its log has handed back a result; ``remove`` takes it as it is
    removes_later: bool  # ``remove`` only notes the attempt, with others; ``close`` waits for all of them

    @property
    def poll_s(self) -> float:
        """Seconds between two calls of ``states``."""

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        """Look, before anything is queued, whether all jobs can run: GPUs, image, paths, secrets, quota, limits.

        Raises:
            UserError: naming the key, the problem and the remedy.
            Unreachable: the driver turns it into a UserError.
        """

    def render(self, attempt: Attempt) -> str:
        """Exactly what ``submit`` would send, as text to read, save and submit by hand. Touches nothing."""

    def submit(self, attempt: Attempt) -> str:
        """Submit, and return the system's name for it. ``attempt.folder`` exists.

        Raises:
            UserError: the system refuses it for what was asked; never tried again.
            LaunchError: a fault of the system; counted and tried again.
            Unreachable: not known whether it was taken; the driver asks ``find`` before it tries again.
        """

    def find(self, attempt: Attempt) -> str | None:
        """The name of an attempt whose submission was not confirmed, by its ``uid``; None if there is none."""

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """The state of each, by ``Attempt.id``, in as few questions as possible. Left out: never heard of it."""

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """Pass on what is new since the last call for this attempt, without waiting for more.

        Called every few hundred milliseconds while it runs, and a last time with ``final`` after its end: then all that
        there is must be passed on. A cluster whose log is a stream reads it in a thread of its own.
        """

    def fetch(self, attempt: Attempt) -> None:
        """Bring what the attempt left into ``attempt.folder``, ``status.json`` included; after its end, once.

        With a shared file system there is nothing to do. Where the node hands its files back by its log
        (``_node --handback``), the driver has unpacked them already.
        """

    def cancel(self, attempt: Attempt) -> None:
        """Ask for its end, as by SIGTERM; no error if it has ended. The driver watches ``states`` for the end."""

    def remove(self, attempt: Attempt) -> None:
        """Remove what was created for it, which has ended or is lost; no error if it is gone. Not with ``keep``.

        With ``removes_later`` it is called again, by a process that takes the sweep over, for attempts that are over.
        """

    def close(self) -> None:
        """Remove what was created for all (a cluster, a queue) unless ``keep``, and let go of connections."""


def connect(launcher: str, settings: RemoteLauncherConf) -> Cluster:
    """The system of the launcher of that name; see the module."""
    cluster: Cluster = importlib.import_module(f"hydra_plugins.mlperf_launchers._{launcher}").connect(settings)
    return cluster


def quoted(text: str) -> str:
    """``text`` as a string of Hydra's override grammar, with nothing in it left to be interpreted."""
    plain = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)  # OmegaConf's interpolation
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), plain) + "'"


def dumps(value: Any) -> str:
    """A request as text that can travel through any system: JSON, ASCII only."""
    return json.dumps(value, ensure_ascii=True)
