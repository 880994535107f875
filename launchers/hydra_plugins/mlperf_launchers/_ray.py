"""Jobs on a Ray cluster, through its job submission API: everything of the launcher ``ray`` that may be heavy.

One attempt is one Ray job, named by the attempt's ``uid``, so that a submission whose answer was lost is found again
and cannot run twice. Ray passes the entrypoint to a shell, so it consists of fixed words only; what is to run travels
in a variable. Results come back by the log (see :mod:`_handback`) unless the nodes share the sweep's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
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
from hydra_plugins.mlperf_launchers._ray_config import RayLauncherConf
from hydra_plugins.mlperf_launchers._stream import Stream

from mlperf_exp.errors import UserError, missing_extra

try:
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException
except ImportError as problem:
    raise missing_extra("ray[default]", "hydra/launcher=ray", "ray") from problem

_REQUEST = "MLPERF_EXP_REQUEST"
_KINDS = {
    "PENDING": Kind.queued,
    "RUNNING": Kind.running,
    "STOPPED": Kind.cancelled,
    "SUCCEEDED": Kind.succeeded,
    "FAILED": Kind.failed,
}
_OWN_FAULTS = ("JOB_ENTRYPOINT_COMMAND_ERROR",)  # all other reasons for FAILED are faults of the machines


def connect(settings: RayLauncherConf) -> RayCluster:
    """The cluster at ``settings.backend.address``; nothing is asked of it yet."""
    return RayCluster(settings)


class RayCluster:
    """See :class:`_cluster.Cluster`."""

    poll_s = 1.0
    submits_at_once = 4
    told_by_log = removes_later = False

    def __init__(self, settings: RayLauncherConf) -> None:
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        self.settings = settings
        self.shared_files = settings.backend.shared_files
        self._connected: JobSubmissionClient | None = None
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}

    def preflight(self, jobs: Sequence[JobSpec]) -> None:
        """Refuse a cluster that does not answer, and jobs that no nodes of it can hold."""
        try:
            with _asking():
                client = self._client()
                nodes = list_nodes(
                    address=client.get_address(),
                    filters=[("state", "=", "ALIVE")],
                    limit=10_000,
                    raise_on_missing_output=False,
                )
        except RayStateApiException as error:
            raise Unreachable(f"Ray cannot list its nodes: {error}") from error
        if self.settings.backend.autoscales:
            return
        for job in jobs:
            wanted = _resources(job.need)
            fit = [node for node in nodes if _fits(node.resources_total or {}, wanted)]
            if len(fit) < job.need.nodes:
                raise UserError(
                    "hydra.launcher.resources",
                    f"job {job.number} wants {_told(job.need, wanted)}; of the {len(nodes)} nodes of "
                    f"{self._address()} {len(fit) or 'none'} can give that",
                    "Ask for less, start more Ray nodes, or set hydra.launcher.backend.autoscales=true",
                )

    def render(self, attempt: Attempt) -> str:
        """The body of the submission, as JSON."""
        asked = {"address": self._address(), **self._submission(attempt)}
        return msgspec.json.format(msgspec.json.encode(asked), indent=2).decode()

    def submit(self, attempt: Attempt) -> str:
        """Submit the job under its own ``uid``."""
        asked = self._submission(attempt)
        if self.settings.backend.working_dir is not None:
            asked["runtime_env"]["working_dir"] = self.settings.backend.working_dir
        with _asking():
            try:
                return str(self._client().submit_job(**asked))
            except RuntimeError as error:
                if self._knows(attempt.uid):  # the answer to an earlier try was lost
                    return attempt.uid
                raise LaunchError(f"Ray refused the job: {error}") from error
            except (ValueError, TypeError) as error:
                raise UserError("hydra.launcher.backend", f"Ray refuses it: {error}", "See ray job submit") from error

    def find(self, attempt: Attempt) -> str | None:
        """The job's name, if Ray knows it."""
        with _asking():
            return attempt.uid if self._knows(attempt.uid) else None

    def states(self, attempts: Sequence[Attempt]) -> Mapping[str, State]:
        """All jobs of the cluster in one question."""
        wanted = {attempt.id for attempt in attempts}
        with _asking():
            jobs = self._client().list_jobs()
            return {str(job.submission_id): _state(job) for job in jobs if job.submission_id in wanted}

    def logs(self, attempt: Attempt, log: Log, final: bool) -> None:
        """Follow the log in a thread; at the end, read what the stream may have missed."""
        assert attempt.id is not None
        name = attempt.id
        if name not in self._streams:
            with _asking():
                client = self._client()
            self._streams[name] = Stream(lambda: _followed(client, name), lambda: self._log(name), log, "0")
        if final:
            self._streams.pop(name).finish()
        else:
            self._streams[name].renew()

    def fetch(self, attempt: Attempt) -> None:
        """Nothing to do: shared files, or handed back by the log."""

    def cancel(self, attempt: Attempt) -> None:
        """Ask Ray to stop the job: it sends SIGINT, and kills after ``grace_s``."""
        assert attempt.id is not None
        with _asking():
            try:
                self._client().stop_job(attempt.id)
            except RuntimeError:
                if self._knows(attempt.id):
                    raise

    def remove(self, attempt: Attempt) -> None:
        """Delete the job's record."""
        assert attempt.id is not None
        with _asking(), contextlib.suppress(RuntimeError):  # gone already, or still being stopped
            self._client().delete_job(attempt.id)

    def close(self) -> None:
        """Nothing was created for all jobs."""

    def _client(self) -> JobSubmissionClient:
        with self._lock:
            if self._connected is None:
                self._connected = JobSubmissionClient(self.settings.backend.address)
            return self._connected

    def _address(self) -> str:
        return (
            self._connected.get_address()
            if self._connected
            else self.settings.backend.address or "$RAY_API_SERVER_ADDRESS"
        )

    def _log(self, name: str) -> str:
        with _asking():
            try:
                return str(self._client().get_job_logs(name))
            except RuntimeError:  # the node is gone, and its log with it
                return ""

    def _knows(self, name: str) -> bool:
        try:
            self._client().get_job_info(name)
        except RuntimeError as error:
            if "404" in str(error):
                return False
            raise Unreachable(str(error)) from error
        return True

    def _submission(self, attempt: Attempt) -> dict[str, Any]:
        settings, backend, need = self.settings, self.settings.backend, attempt.spec.need
        python = settings.python or "python"
        folder = str(attempt.folder) if backend.shared_files else f"{backend.node_dir.rstrip('/')}/{attempt.uid}"
        module = "_node" if need.nodes == 1 else "_ray_nodes"
        command = shlex.join([python, "-m", f"hydra_plugins.mlperf_launchers.{module}", f"env:{_REQUEST}"])
        if not backend.shared_files:
            command += " --handback"
            if not settings.keep and need.nodes > 1:
                command += " --discard"
            elif not settings.keep:
                command = f"trap : INT TERM; {command}; status=$?; rm -rf -- {shlex.quote(folder)}; exit $status"
        request = dumps(attempt.request(settings, folder, python, backend.cwd))
        env = {
            # Ray replaces ${NAME} in the values of variables.
            _REQUEST: request.replace("$", "\\u0024"),
            # Ray's workers have SIGINT blocked, and so would the job; with this setting Ray frees it.
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(round(settings.grace_s) + 15),
        }
        if backend.working_dir is not None:
            env["PYTHONPATH"] = ".:launchers"
        runtime_env = dict(backend.runtime_env)
        runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **env}
        asked: dict[str, Any] = {
            "submission_id": attempt.uid,
            "entrypoint": command,
            "runtime_env": runtime_env,
            "metadata": {"mlperf_exp": f"job {attempt.name}"},
        }
        # On several nodes the entrypoint itself only starts the others, and needs no more than a place on the head.
        if need.nodes == 1:
            wanted = _resources(need)
            asked["entrypoint_num_cpus"] = wanted.pop("CPU")
            asked["entrypoint_num_gpus"] = wanted.pop("GPU", None)
            asked["entrypoint_memory"] = int(wanted.pop("memory", 0)) or None
            asked["entrypoint_resources"] = {**wanted, **backend.entrypoint_resources} or None
        else:
            extra = backend.entrypoint_resources
            runtime_env["env_vars"]["MLPERF_EXP_RESOURCES"] = dumps({**_resources(need), **extra})
        return {key: value for key, value in asked.items() if value is not None}


def _followed(client: JobSubmissionClient, name: str) -> Iterator[str]:
    """The log's text as it grows; Ray's own iterator is for an event loop."""
    loop = asyncio.new_event_loop()
    try:
        texts = client.tail_job_logs(name)
        while True:
            try:
                yield loop.run_until_complete(anext(texts))
            except StopAsyncIteration:
                return
    finally:
        loop.close()


def _resources(need: Need) -> dict[str, float]:
    """What one node must give, in Ray's names."""
    wanted: dict[str, float] = {"CPU": 1 if need.cpus is None else need.cpus}
    if need.gpus_per_node:
        wanted["GPU"] = need.gpus_per_node
    if need.memory_gib is not None:
        wanted["memory"] = int(need.memory_gib * 2**30)
    if need.gpu_type is not None and need.gpus_per_node:
        wanted[f"accelerator_type:{need.gpu_type}"] = 0.001
    return wanted


def _fits(total: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(total.get(name, 0) >= amount for name, amount in wanted.items())


def _told(need: Need, wanted: Mapping[str, float]) -> str:
    what = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
    return what if need.nodes == 1 else f"{need.nodes} nodes with {what} each"


def _state(job: Any) -> State:
    kind = _KINDS.get(job.status.value, Kind.unknown)
    if kind is Kind.failed and job.error_type is not None and job.error_type not in _OWN_FAULTS:
        kind = Kind.lost
    reason = (job.message or "").split(", last available logs", 1)[0]
    return State(kind, reason if kind not in (Kind.running, Kind.succeeded) else "", job.driver_exit_code)


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Tell a cluster that does not answer from one that refuses."""
    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            "RAY_AUTH_TOKEN",
            "the Ray cluster does not take this token, or wants one",
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the cluster",
        ) from error
    except (ConnectionError, requests.exceptions.RequestException, TimeoutError) as error:
        raise Unreachable(f"Ray does not answer: {error}") from error
    except RuntimeError as error:
        if "status code 5" in str(error):
            raise Unreachable(f"Ray does not answer: {error}") from error
        raise
