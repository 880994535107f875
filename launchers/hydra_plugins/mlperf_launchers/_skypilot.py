"""Jobs on clouds, Kubernetes and Slurm through SkyPilot: everything of the launcher ``skypilot`` that may be heavy.

One attempt is one SkyPilot cluster, named by the attempt's ``uid``, that runs one task: prepare an environment by uv,
then ``_node`` on each node. Launching is asynchronous, so that an interrupt is heeded while machines are provisioned.
Results come back by rsync, over the ``ssh CLUSTER`` that SkyPilot sets up; then the cluster is taken down. SkyPilot
itself is spoken to in its own environment (see :mod:`_sky_bridge`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from hydra_plugins.mlperf_launchers import _sky_bridge
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
from hydra_plugins.mlperf_launchers._skypilot_config import SkypilotLauncherConf
from hydra_plugins.mlperf_launchers._stream import Stream

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
_ANSWER_S = 90.0

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


def connect(settings: SkypilotLauncherConf) -> SkypilotCluster:
    """SkyPilot, as it is set up for this user; it is started when it is first asked."""
    return SkypilotCluster(settings)


class SkypilotCluster:
    """See :class:`_cluster.Cluster`. ``Attempt.id`` is ``CLUSTER/REQUEST``."""

    shared_files = False
    submits_at_once = 8
    poll_s = 5.0

    def __init__(self, settings: SkypilotLauncherConf) -> None:
        self.settings = settings
        self._bridge: Bridge | None = None
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._unfetched: set[str] = set()

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
        for task in {yaml.safe_dump(self._task(Attempt(job, 1, "mlperf-preflight"))): None for job in jobs}:
            try:
                self._ask("fits", task=task, secrets=list(self.settings.secrets))
            except Refused as error:
                raise UserError(
                    "hydra.launcher.backend", f"SkyPilot cannot place it: {error}", "See sky check"
                ) from error

    def render(self, attempt: Attempt) -> str:
        """The task's YAML, ready for ``sky launch``."""
        return _yaml(self._task(attempt))

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
        """Bring the run's folder by rsync; if that fails, the cluster is left for its autodown."""
        cluster = str(attempt.id).partition("/")[0]
        self._unfetched.add(cluster)
        self._ask("ssh", cluster=cluster)
        # -s: the path is passed as it is, past the node's shell
        words = [
            "rsync",
            "-a",
            "-s",
            "--timeout=60",
            f"{cluster}:sky_workdir/{_folder(attempt)}/",
            f"{attempt.folder}/",
        ]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1800)
        if done.returncode == 23 and "No such file" in done.stderr:  # it never ran: there is nothing to bring
            done.returncode = 0
        if done.returncode:
            raise Failed(f"rsync from {cluster}: {' '.join(done.stderr.split())[-500:]}")
        self._unfetched.discard(cluster)

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

    # -- the task ------------------------------------------------------------------------------------------------------

    def _task(self, attempt: Attempt) -> dict[str, Any]:
        settings, backend, need = self.settings, self.settings.backend, attempt.spec.need
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
        request = attempt.request(settings, _folder(attempt), python, None)
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

    # -- questions -----------------------------------------------------------------------------------------------------

    def _ask(self, call: str, **arguments: Any) -> Any:
        with self._lock:
            if self._bridge is None or self._bridge.ended:
                self._bridge = Bridge(_python(self.settings.backend.python))
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


class Failed(Exception):
    """SkyPilot could not do what was asked."""


class Refused(Failed):
    """Asking again would be of no use."""


class Bridge:
    """The process in SkyPilot's environment, and what it answers."""

    def __init__(self, python: str) -> None:
        words = [python, _sky_bridge.__file__]
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,  # out of the reach of Ctrl-C: it is still needed then
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._said: list[str] = []
        for work in (self._listen, self._overhear):
            threading.Thread(target=work, name="sky bridge", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def ask(self, call: str, **arguments: Any) -> Any:
        """One question, one answer.

        Raises:
            Refused, Failed: SkyPilot's own word.
            Unreachable: no answer.
        """
        number, answers = self._send(call, arguments)
        try:
            return self._value(answers.get(timeout=_ANSWER_S if call != "fits" else 300.0))
        except queue.Empty:
            raise Unreachable(f"SkyPilot did not answer {call} in time") from None
        finally:
            self._waiting.pop(number, None)

    def texts(self, call: str, **arguments: Any) -> Iterator[str]:
        """One question, many pieces of text."""
        number, answers = self._send(call, arguments)
        try:
            while "text" in (message := answers.get()):
                yield message["text"]
            self._value(message)
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, call: str, arguments: dict[str, Any]) -> tuple[int, queue.Queue[dict[str, Any]]]:
        number = next(self._numbers)
        answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._waiting[number] = answers
        line = json.dumps({"id": number, "call": call, **arguments}).encode() + b"\n"
        try:
            with self._lock:
                assert self._process.stdin is not None
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except OSError:
            answers.put(self._silence())
        return number, answers

    def _value(self, message: dict[str, Any]) -> Any:
        if "value" in message:
            return message["value"]
        kind = message["kind"]
        if kind == "silent":
            raise Unreachable(message["error"])
        raise (Refused if kind == "refused" else Failed)(message["error"])

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            answers = self._waiting.get(message["id"])
            if answers is not None:
                answers.put(message)
        for answers in list(self._waiting.values()):
            answers.put(self._silence())

    def _overhear(self) -> None:
        """What SkyPilot tells people is of interest only if the process dies."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said = [*self._said[-20:], line.decode(errors="replace").strip()]

    def _silence(self) -> dict[str, Any]:
        last = next((line for line in reversed(self._said) if line), "it ended")
        return {"error": f"SkyPilot's process ended: {last}", "kind": "silent"}


class _Nodes:
    """Takes SkyPilot's prefixes and colours off a log, and gives each line to its node; a :class:`_cluster.Log`."""

    def __init__(self, log: Log) -> None:
        self._log, self._rest = log, ""

    def write(self, _: str, data: bytes) -> None:
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            plain = _COLOURS.sub("", line)
            match = _PREFIX.match(plain)
            rank = (match[1] or "0") if match else ""
            self._log.write(rank, f"{plain[match.end() if match else 0 :]}\n".encode())


def _python(given: str | None) -> str:
    """The interpreter that has SkyPilot.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not os.access(path, os.X_OK):
            raise UserError("hydra.launcher.backend.python", f"{given} is no program", "Name SkyPilot's interpreter")
        return str(path)
    if importlib.util.find_spec("sky") is not None:
        return sys.executable
    command = shutil.which("sky")
    if command is not None:
        first = Path(command).read_bytes().partition(b"\n")[0].decode(errors="replace")
        beside = Path(command).resolve().with_name("python")
        for path in (Path(first.removeprefix("#!").strip()), beside):
            if path.is_absolute() and os.access(path, os.X_OK):
                return str(path)
    raise UserError(
        "hydra/launcher=skypilot",
        "there is no SkyPilot: no command sky, and hydra.launcher.backend.python names none",
        'Install it in an environment of its own: uv tool install "skypilot[gcp,kubernetes]" '
        '(or python -m venv ~/.sky-env and ~/.sky-env/bin/pip install "skypilot[gcp,kubernetes]")',
    )


def _accelerator(spec: JobSpec) -> str:
    name = spec.need.gpu_type or ACCELERATORS.get(str(spec.need.gpu))
    if name is None:
        raise UserError(
            "hydra.launcher.resources.gpu_type",
            f"SkyPilot's name for {spec.need.gpu or 'the GPU'} is not known",
            "Give it as sky gpus list has it",
        )
    return name


def _folder(attempt: Attempt) -> str:
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


def _yaml(task: Mapping[str, Any]) -> str:
    return yaml.dump(dict(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)
