"""Jobs on clouds, Kubernetes and Slurm through SkyPilot: everything of the launcher ``skypilot`` that may be heavy.

One attempt is one SkyPilot cluster, named by the attempt's ``uid``, that runs one task: prepare an environment by uv,
then ``_node`` on each node. Launching is asynchronous, so that an interrupt is heeded while machines are provisioned.
Results come back by rsync, over the ``ssh CLUSTER`` that SkyPilot sets up; then the cluster is taken down. SkyPilot
itself is spoken to in its own environment (see :mod:`_sky_bridge`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from hydra_plugins.mlperf_launchers._cluster import Attempt, JobSpec, Kind, LaunchError, Log, State, Unreachable
from hydra_plugins.mlperf_launchers._sky_client import Bridge, Failed, Refused, python_of
from hydra_plugins.mlperf_launchers._skypilot_config import SkypilotLauncherConf
from hydra_plugins.mlperf_launchers._skypilot_task import as_yaml, folder_on_node, task_of
from hydra_plugins.mlperf_launchers._stream import Stream

from mlperf_exp.errors import UserError

_KINDS = {
    "launching": Kind.queued,
    "init": Kind.queued,
    "pending": Kind.queued,
    "setting_up": Kind.queued,
    "running": Kind.running,
    "succeeded": Kind.succeeded,
    "failed": Kind.failed,
    "failed_setup": Kind.failed,
    "failed_driver": Kind.lost,
    "cancelled": Kind.cancelled,
    "refused": Kind.failed,
    "launch_failed": Kind.lost,
}
_REASONS = {"setting_up": "setting up", "failed_setup": "the set-up failed", "failed_driver": "SkyPilot's driver died"}
_PREFIX = re.compile(r"^\((?:[^()]*?, )?(?:rank=(\d+), )?pid=\d+(?:, ip=[^()]*)?\) ?")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def connect(settings: SkypilotLauncherConf) -> SkypilotCluster:
    """SkyPilot, as it is set up for this user; it is started when it is first asked."""
    return SkypilotCluster(settings)


class SkypilotCluster:
    """See :class:`_cluster.Cluster`. ``Attempt.id`` is ``CLUSTER/REQUEST``."""

    shared_files = False
    submits_at_once = 8
    told_by_log = removes_later = False
    poll_s = 5.0

    def __init__(self, settings: SkypilotLauncherConf) -> None:
        self.settings = settings
        self._bridge: Bridge | None = None
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        """Refuse what SkyPilot cannot read, or what no cloud that is set up offers."""
        backend = self.settings.backend
        missing = [name for name in self.settings.secrets if name not in os.environ]
        if missing:
            raise UserError("hydra.launcher.secrets", f"{', '.join(missing)} is not set here", "Set it in this shell")
        if shutil.which("rsync") is None:
            raise UserError("hydra/launcher", "results come back by rsync, which this machine lacks", "Install rsync")
        installs = backend.setup is None and self.settings.python is None
        if installs and not (Path(backend.workdir or "/nowhere") / "pyproject.toml").is_file():
            raise UserError(
                "hydra.launcher.backend.workdir",
                f"{backend.workdir} is no checkout of mlperf_exp, which the set-up would install",
                "Start in the checkout, name it, or give hydra.launcher.backend.setup",
            )
        for task in {yaml.safe_dump(task_of(self.settings, Attempt(job, 1, "mlperf-preflight"))): None for job in jobs}:
            try:
                self._ask("fits", task=task, secrets=list(self.settings.secrets))
            except Refused as error:
                raise UserError(
                    "hydra.launcher.backend", f"SkyPilot cannot place it: {error}", "See sky check"
                ) from error
            except Failed as error:  # no way to its catalogs, for instance
                raise Unreachable(str(error)) from error

    def render(self, attempt: Attempt) -> str:
        """The task's YAML, ready for ``sky launch``."""
        return as_yaml(task_of(self.settings, attempt))

    def submit(self, attempt: Attempt) -> str:
        """Begin to launch the cluster with its task."""
        autodown = self.settings.backend.autodown_minutes
        if str(self.settings.backend.infra or "").startswith("slurm") and self.settings.backend.image is None:
            autodown = None  # SkyPilot has none for jobs of Slurm without a container
        try:
            request = self._ask(
                "launch",
                task=self.render(attempt),
                cluster=attempt.uid,
                secrets=list(self.settings.secrets),
                idle_minutes=autodown,
            )
        except Refused as error:
            raise UserError(
                "hydra.launcher.backend", f"SkyPilot refuses it: {error}", "See sky launch --help"
            ) from error
        except Failed as error:
            raise LaunchError(str(error)) from error
        return f"{attempt.uid}/{request}"

    def find(self, attempt: Attempt) -> str | None:
        """The request that launches the attempt's cluster."""
        request = self._ask("find", cluster=attempt.uid)
        return None if request is None else f"{attempt.uid}/{request}"

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """Each by questions of its own, all at once."""
        with ThreadPoolExecutor(max(1, len(attempts))) as pool:
            states = pool.map(self._state, attempts)
        return {str(attempt.id): state for attempt, state in zip(attempts, states, strict=True) if state is not None}

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """Follow SkyPilot's log; each node's lines go to its own."""
        name = str(attempt.id)
        if name not in self._streams:
            lines = _Nodes(log)
            self._streams[name] = Stream(lambda: self._follow(name, True), lambda: self._read(name), lines)
        if final:
            self._streams.pop(name).finish()
        else:
            self._streams[name].renew()

    def fetch(self, attempt: Attempt) -> None:
        """Bring the run's folder by rsync."""
        cluster = str(attempt.id).partition("/")[0]
        options = self._ask("ssh", cluster=cluster)
        by = ["-e", shlex.join(["ssh", *options])] if options else []
        # -s: the path is passed as it is, past the node's shell
        source = f"{cluster}:sky_workdir/{folder_on_node(attempt)}/"
        words = ["rsync", "-a", "-s", "--timeout=60", *by, source, f"{attempt.folder}/"]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1800)
        if done.returncode == 23 and "No such file" in done.stderr:  # it never ran: there is nothing to bring
            done.returncode = 0
        if done.returncode:
            raise Failed(f"rsync from {cluster}: {' '.join(done.stderr.split())[-500:]}")

    def cancel(self, attempt: Attempt) -> None:
        """End the launch, or interrupt the job."""
        cluster, _, request = str(attempt.id).partition("/")
        self._ask("cancel", cluster=cluster, request=request)

    def remove(self, attempt: Attempt) -> None:
        """Take the cluster down."""
        self._ask("down", cluster=str(attempt.id).partition("/")[0])

    def close(self) -> None:
        """Let go of SkyPilot."""
        if self._bridge is not None:
            self._bridge.close()

    # -- questions -----------------------------------------------------------------------------------------------------

    def _ask(self, call: str, **arguments: Any) -> Any:
        with self._lock:
            if self._bridge is None or self._bridge.ended:
                self._bridge = Bridge(python_of(self.settings.backend.python))
            bridge = self._bridge
        return bridge.ask(call, **arguments)

    def _state(self, attempt: Attempt) -> State | None:
        cluster, _, request = str(attempt.id).partition("/")
        said = self._ask("state", cluster=cluster, request=request)
        phase, reason = said["phase"], " ".join(filter(None, (_REASONS.get(said["phase"], ""), said["reason"])))
        if phase == "gone":
            return State(Kind.preempted if self.settings.backend.use_spot else Kind.lost, reason)
        return State(_KINDS.get(phase, Kind.unknown), reason)

    def _follow(self, name: str, follow: bool) -> Iterator[str]:
        cluster, _, request = name.partition("/")
        assert self._bridge is not None
        return self._bridge.texts("logs", cluster=cluster, request=request, follow=follow)

    def _read(self, name: str) -> str:
        with contextlib.suppress(Failed):  # the cluster is gone, and the log with it
            return "".join(self._follow(name, False))
        return ""


class _Nodes:
    """Takes SkyPilot's prefixes and colours off a log, and gives each line to its node; a :class:`_cluster.Log`."""

    def __init__(self, log: Log) -> None:
        self._log, self._rest = log, ""

    @property
    def complete(self) -> bool:
        return self._log.complete

    def write(self, _: str, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            plain = _COLOURS.sub("", line)
            match = _PREFIX.match(plain)
            rank = (match[1] or "0") if match else ""
            self._log.write(rank, f"{plain[match.end() if match else 0 :]}\n".encode())
