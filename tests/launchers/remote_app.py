"""An application for sweeps on other machines, and how it is run: each job does what its override says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.launchers.ended import Ended

HEAD = """
import json, os, signal, socket, sys, time
from pathlib import Path


def interrupt(*_):  # Slurm sends SIGTERM to every process of a job, and the node's entry then SIGINT
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, interrupt)
import hydra
from hydra.core.hydra_config import HydraConfig
from mlperf_exp.errors import ExperimentError


"""  # of every such application: what it imports, and how it is interrupted
APP = (
    HEAD
    + """@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    act = str(cfg.act).split("_")[0]
    names = ("EXTRA", "TOKEN", "RANK", "WORLD_SIZE", "MASTER_ADDR")
    seen = {"pid": os.getpid(), "host": socket.gethostname(), "value": cfg.get("value")}
    (folder / "seen.json").write_text(json.dumps(seen | {name: os.environ.get(name) for name in names}))
    print(f"out of {cfg.act} on {socket.gethostname()} rank {os.environ.get('RANK')}", flush=True)
    if act == "pair":  # the first waits for the second, as a collective operation would
        (folder / f"rank{os.environ['RANK']}").touch()
        while not (folder / "rank1").exists():
            time.sleep(0.1)
    if act == "exit":
        print("mlperf_exp: the reason", file=sys.stderr, flush=True)
        os._exit(7)
    if act == "slow":
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            (folder / "kept").touch()
            os._exit(130)
    (folder / "big").write_bytes(os.urandom(100_000))
    return str(cfg.act)


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
"""
)

# Whatever a shell, a scheduler, a template or a file format might take for its own.
VALUES = [
    "a b",
    'say "no"',
    "it's",
    "a,b;c",
    "two\nlines",
    "$HOME $$ ${x} $(id) `id` %h",
    "back\\slash\\",
    "[x]{y}",
    " ",
    "ü→\t",
]


def quote(value: str) -> str:
    """As a value of Hydra's grammar: backslashes count only before a quote, ${ begins an interpolation."""
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return "'" + text.replace("${", "\\${") + "'"


class Done(Ended):
    """A sweep on other machines that has ended."""

    def jobs(self) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = json.loads((self.folder / "jobs.json").read_text())["jobs"]
        return value

    def ends(self) -> list[str]:
        """How each job ended, in order."""
        return [job["status"] for job in self.jobs()]


class Sweeper:
    """Runs the application with one launcher's settings.

    Args:
        folder: where the application and its sweeps are.
        settings: overrides that each sweep gets; the launcher among them.
        env: more environment variables of the submitting side.
    """

    def __init__(self, folder: Path, settings: list[str], env: Mapping[str, str] = {}) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APP)
        self._settings, self._env = settings, {**os.environ, "HYDRA_FULL_ERROR": "1", **env}

    def command(self, *overrides: str) -> list[str]:
        fixed = ["-m", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}", *self._settings]
        return [sys.executable, str(self.folder / "app.py"), *fixed, *overrides]

    def run(self, *overrides: str, timeout_s: float = 200) -> Done:
        done = subprocess.run(
            self.command(*overrides), capture_output=True, text=True, timeout=timeout_s, cwd=self.folder, env=self._env
        )
        return Done(done.returncode, done.stdout, done.stderr, self.folder / "sweep")

    @contextlib.contextmanager
    def running(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            self.command(*overrides),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self._env,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def ended(self, process: subprocess.Popen[str], timeout_s: float = 120) -> Done:
        stdout, stderr = process.communicate(timeout=timeout_s)
        return Done(process.returncode, stdout, stderr, self.folder / "sweep")

    def jobs(self) -> list[dict[str, Any]]:
        """What ``jobs.json`` says now."""
        try:
            return Done(0, "", "", self.folder / "sweep").jobs()
        except OSError:
            return []


def is_root() -> bool:
    return os.geteuid() == 0


needs_root = pytest.mark.skipif(not is_root(), reason="makes network namespaces, which takes root")
