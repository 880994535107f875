"""SkyPilot from this side: a process in its own environment (:mod:`_sky_bridge`), questions and answers."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra_plugins.mlperf_launchers import _sky_bridge
from hydra_plugins.mlperf_launchers._cluster import Unreachable

from mlperf_exp.errors import UserError

_ANSWER_S = 90.0
_SLOW_S = {"fits": 300.0, "down": 300.0}  # asks all clouds; waits until nothing runs any more (on Slurm 2 minutes)


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
            return self._value(answers.get(timeout=_SLOW_S.get(call, _ANSWER_S)))
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


def python_of(given: str | None) -> str:
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
