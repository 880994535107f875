"""Jobs as TorchX applications: everything of the launcher ``torchx`` that may be heavy.

One attempt is one application (:mod:`_torchx_app`).
Before it is scheduled, TorchX's request is mended where the launcher's promises need it: an application is named by the
attempt's ``uid``, so that it is found again; Slurm must not requeue it behind the launcher's back.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers import _slurm_jobs
from hydra_plugins.mlperf_launchers._cluster import (
    Attempt,
    JobSpec,
    Kind,
    LaunchError,
    Log,
    State,
    Unreachable,
    dumps,
)
from hydra_plugins.mlperf_launchers._files import REQUEST
from hydra_plugins.mlperf_launchers._stream import GrowingFile, Stream
from hydra_plugins.mlperf_launchers._torchx_config import Scheduler, TorchxLauncherConf

from mlperf_exp.errors import UserError, missing_extra
from mlperf_exp.files import write_atomic

try:
    from hydra_plugins.mlperf_launchers._torchx_app import ROLE, application, mend, request_of
    from torchx.runner import Runner
    from torchx.schedulers import get_scheduler_factories
    from torchx.specs import AppDryRunInfo, AppState, InvalidRunConfigException
    from torchx.specs.builders import parse_mounts
except ImportError as problem:
    raise missing_extra("torchx-nightly", "hydra/launcher=torchx", "torchx") from problem

_SESSION = "mlperf-exp"
_NEVER_THERE = 10_000  # TorchX's cache of local applications: more than a sweep has
_KINDS = {
    AppState.UNSUBMITTED: Kind.queued,
    AppState.SUBMITTED: Kind.queued,
    AppState.PENDING: Kind.queued,
    AppState.RUNNING: Kind.running,
    AppState.SUCCEEDED: Kind.succeeded,
    AppState.FAILED: Kind.failed,
    AppState.CANCELLED: Kind.cancelled,
}
_STAMP = re.compile(r"^(?:\x1b\[\d+m\S+\x1b\[\d+m )?\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d) ")


def connect(settings: TorchxLauncherConf) -> TorchxCluster:
    """TorchX's runner with the scheduler of the settings; nothing is asked of it yet."""
    return TorchxCluster(settings)


class TorchxCluster:
    """See :class:`_cluster.Cluster`."""

    submits_at_once = 1  # TorchX's runner is no more than one thread's
    told_by_log = removes_later = False

    def __init__(self, settings: TorchxLauncherConf) -> None:
        self.settings = settings
        self._scheduler = settings.backend.scheduler.value
        local = settings.backend.scheduler in (Scheduler.local_cwd, Scheduler.slurm)
        self.shared_files = local if settings.backend.shared_files is None else settings.backend.shared_files
        self.poll_s = {Scheduler.local_cwd: 0.3, Scheduler.local_docker: 1.0}.get(settings.backend.scheduler, 3.0)
        self._lock = threading.RLock()
        self._logs: dict[str, list[GrowingFile | Stream]] = {}
        logging.getLogger("torchx").setLevel(logging.WARNING)
        self._runner = Runner(_SESSION, get_scheduler_factories(), scheduler_params={"cache_size": _NEVER_THERE})
        # Made in another thread: in the main thread TorchX's local scheduler would take over SIGINT and SIGTERM.
        with ThreadPoolExecutor(1) as pool:
            self._options = pool.submit(self._runner.scheduler_run_opts, self._scheduler).result()

    def preflight(self, _: Sequence[JobSpec]) -> None:
        """Refuse options that the scheduler does not know, a missing image, and a scheduler that is not there."""
        settings = self.settings
        if (
            settings.backend.scheduler in (Scheduler.local_docker, Scheduler.kubernetes)
            and settings.backend.image is None
        ):
            raise UserError(
                "hydra.launcher.backend.image",
                f"hydra.launcher.backend.scheduler={self._scheduler} runs containers, and no image is named",
                "Name one with mlperf_exp inside: hydra.launcher.backend.image=REGISTRY/IMAGE:TAG",
            )
        self._resolved()
        try:
            parse_mounts([part for mount in settings.backend.mounts for part in mount.split(",")])
        except (KeyError, ValueError) as error:
            raise UserError(
                "hydra.launcher.backend.mounts", str(error), "Write type=bind,src=/data,dst=/data"
            ) from error
        if settings.backend.scheduler is Scheduler.slurm:
            for program in ("sbatch", "squeue", "sacct", "scancel"):
                if shutil.which(program) is None:
                    raise UserError(
                        "hydra.launcher.backend.scheduler",
                        f"Slurm's {program} is not on this machine",
                        "Run this on a node of the cluster from which jobs are submitted",
                    )
        elif settings.backend.scheduler is Scheduler.local_docker:
            self._docker()
        elif settings.backend.scheduler is Scheduler.kubernetes:
            self._volcano()
        if settings.secrets and settings.backend.scheduler is Scheduler.kubernetes and settings.backend.secret is None:
            raise UserError(
                "hydra.launcher.secrets",
                "on Kubernetes variables come from a Secret, and none is named",
                "Make one and name it: hydra.launcher.backend.secret=NAME",
            )

    def render(self, attempt: Attempt) -> str:
        """What TorchX would hand to the scheduler, in TorchX's own words, without the secrets' values."""
        with self._lock:
            info = self._dryrun(attempt)
        if self.settings.backend.scheduler is Scheduler.local_docker:
            for container in info.request.containers:
                container.kwargs["environment"].update(dict.fromkeys(self.settings.secrets, "<from the environment>"))
        return str(info)

    def submit(self, attempt: Attempt) -> str:
        """Schedule the application."""
        if self.shared_files:
            write_atomic(
                attempt.folder / REQUEST, dumps(request_of(self.settings, attempt, self.shared_files)).encode()
            )
        with self._lock, _asking(self._scheduler):
            info = self._dryrun(attempt)
            if self.settings.backend.scheduler is Scheduler.local_cwd:
                (attempt.folder / "torchx").mkdir(parents=True, exist_ok=True)
            return str(self._runner.schedule(info))

    def find(self, attempt: Attempt) -> str | None:
        """By the name that was given to it."""
        prefix = f"{self._scheduler}://{_SESSION}/"
        with self._lock, _asking(self._scheduler):
            if self.settings.backend.scheduler is Scheduler.slurm:
                number = _slurm_jobs.named(f"{attempt.uid}-0")
                return prefix + number if number else None
            if self.settings.backend.scheduler is Scheduler.local_cwd:  # its processes are this one's children
                return None
            for app in self._runner.list(self._scheduler, self._resolved()):
                if app.app_id.partition(":")[2] == attempt.uid or app.app_id.startswith(attempt.uid):
                    return str(app.app_handle)
        return None

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """One question a job: TorchX has no other. Of Slurm's it would tell wrongly: see :meth:`_of_slurm`."""
        if self.settings.backend.scheduler is Scheduler.slurm:
            return self._of_slurm(attempts)
        states = {}
        for attempt in attempts:
            assert attempt.id is not None
            with self._lock, _asking(self._scheduler):
                state = self._state(attempt.id)
            if state is not None:
                states[attempt.id] = state
        return states

    def _of_slurm(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """Slurm's own words.

        TorchX asks ``squeue --json`` for one job; Slurm 22.05 tells of all, and TorchX takes the last one's state.
        """
        numbers = {_own_name(attempt): str(attempt.id) for attempt in attempts}
        return {numbers[number]: state for number, state in _slurm_jobs.states(numbers).items() if number in numbers}

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """Pass on what the replicas printed: their files, or the containers' log."""
        assert attempt.id is not None
        if attempt.id not in self._logs:
            self._logs[attempt.id] = self._sources(attempt, log)
        for i, source in enumerate(self._logs[attempt.id]):
            if isinstance(source, GrowingFile):
                source.pass_on(log, f"{i // 2}")
            elif final:
                source.finish()
            else:
                source.renew()
        if final:
            del self._logs[attempt.id]

    def fetch(self, attempt: Attempt) -> None:
        """Nothing to do: shared files, or handed back by the log."""

    def cancel(self, attempt: Attempt) -> None:
        """Ask TorchX; its local scheduler kills after 10 s."""
        assert attempt.id is not None
        if self.settings.backend.scheduler is Scheduler.slurm:  # TorchX would not, where it takes the job for ended
            _slurm_jobs.cancel(_own_name(attempt))
            return
        # Not under the lock: TorchX waits here for the end of local processes.
        with _asking(self._scheduler):
            self._runner.cancel(attempt.id)

    def remove(self, attempt: Attempt) -> None:
        """Remove the Volcano job, or the containers; Slurm and local processes leave nothing."""
        assert attempt.id is not None
        app = _own_name(attempt)
        with self._lock, _asking(self._scheduler):
            if self.settings.backend.scheduler is Scheduler.kubernetes:
                self._runner.delete(attempt.id)
            elif self.settings.backend.scheduler is Scheduler.local_docker:
                for container in self._docker().containers.list(
                    all=True, filters={"label": f"torchx.pytorch.org/app-id={app}"}
                ):
                    container.remove(force=True)

    def close(self) -> None:
        """Let go of the scheduler; local processes that still run are ended."""
        self._runner.close()

    def _dryrun(self, attempt: Attempt) -> AppDryRunInfo[Any]:
        settings = self.settings
        app, options = application(settings, attempt, self.shared_files)
        try:
            info = self._runner.dryrun(app, self._scheduler, options)
        except (InvalidRunConfigException, ValueError, TypeError) as error:
            raise UserError("hydra.launcher.backend", str(error), f"See torchx runopts {self._scheduler}") from error
        mend(info, settings, attempt)
        return info

    # -- questions -----------------------------------------------------------------------------------------------------

    def _resolved(self) -> Mapping[str, Any]:
        try:
            return dict(self._options.resolve(self.settings.backend.cfg))
        except (InvalidRunConfigException, TypeError) as error:
            told = " ".join(str(error).split())
            raise UserError(
                "hydra.launcher.backend.cfg",
                told,
                f"See torchx runopts {self._scheduler}; set one as +hydra.launcher.backend.cfg.NAME=VALUE",
            ) from error

    def _state(self, name: str) -> State | None:
        status = self._runner.status(name)
        if status is None:
            return None
        kind = _KINDS.get(status.state, Kind.unknown)
        nodes = tuple(replica.hostname for role in status.roles for replica in role.replicas if replica.hostname)
        return State(kind, status.msg if kind is not Kind.running else "", nodes=nodes)

    def _sources(self, attempt: Attempt, log: Log) -> list[GrowingFile | Stream]:
        """Two files a replica, or one stream."""
        assert attempt.id is not None
        name, app = attempt.id, _own_name(attempt)
        count = range(attempt.spec.need.nodes)
        if self.settings.backend.scheduler is Scheduler.slurm:
            base = [f"slurm-{app}-{attempt.uid}-{i}" for i in count]
            return [GrowingFile(attempt.folder / f"{one}.{end}") for one in base for end in ("out", "err")]
        if self.settings.backend.scheduler is Scheduler.local_cwd:
            top = Path(self.settings.backend.cfg.get("log_dir", attempt.folder / "torchx"))
            at = [top / _SESSION / app / ROLE / str(i) for i in count]
            return [GrowingFile(one / end) for one in at for end in ("stdout.log", "stderr.log")]

        def lines(i: int, follow: bool) -> Iterator[str]:
            for line in self._runner.log_lines(name, ROLE, i, should_tail=follow):
                yield _STAMP.sub("", line) if self.settings.backend.scheduler is Scheduler.kubernetes else line

        def stream(i: int) -> Stream:
            return Stream(lambda: lines(i, True), lambda: self._whole(lines(i, False)), log, f"{i}")

        return [stream(i) for i in count]

    def _whole(self, lines: Iterator[str]) -> str:
        with contextlib.suppress(Exception):  # a pod that never was
            return "".join(lines)
        return ""

    def _docker(self) -> Any:
        import docker

        try:
            client = docker.from_env()
            client.ping()
        except docker.errors.DockerException as error:
            raise UserError(
                "hydra.launcher.backend.scheduler",
                f"no Docker answers: {' '.join(str(error).split())}",
                "Start it, or set DOCKER_HOST",
            ) from error
        return client

    def _volcano(self) -> None:
        try:
            self._runner.list(self._scheduler, self._resolved())
        except Exception as error:
            if getattr(error, "status", None) == 404:
                raise UserError(
                    "hydra.launcher.backend.scheduler",
                    "TorchX on Kubernetes submits Volcano jobs, and this cluster has no Volcano",
                    "Install Volcano, or take hydra/launcher=kubernetes, which needs none",
                ) from error
            raise Unreachable(f"Kubernetes does not answer: {' '.join(str(error).split())}") from error


def _own_name(attempt: Attempt) -> str:
    """The scheduler's name of the job, of TorchX's ``scheduler://session/name``; Slurm's is a number."""
    return str(attempt.id).rpartition("/")[2]


@contextlib.contextmanager
def _asking(scheduler: str) -> Iterator[None]:
    """Tell a scheduler that does not answer from one that refuses."""
    try:
        yield
    except UserError:
        raise
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr if isinstance(error.stderr, str) else (error.stderr or b"").decode(errors="replace")
        text = f"{' '.join(map(str, error.cmd))}: {' '.join(said.split()) or error}"
        if "sbatch" in text:
            raise LaunchError(text) from error
        raise Unreachable(text) from error
    except OSError as error:
        raise LaunchError(f"{scheduler}: {error}") from error
    except Exception as error:
        # Clients of Kubernetes and Docker: 4xx is a refusal, all else no answer.
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        reason = " ".join(str(getattr(error, "body", None) or error).split())
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
            raise LaunchError(f"{scheduler} refuses: {reason}") from error
        if type(error).__module__.partition(".")[0] in ("kubernetes", "urllib3", "requests", "docker"):
            raise Unreachable(f"{scheduler} does not answer: {reason}") from error
        raise
