"""Whole runs, as a user starts them: the command in a process of its own, in an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIMULATED = ["model=llama3_tiny", "backend=simulated", "scenario=server", "tracking.enabled=false"]


@dataclass(frozen=True)
class Finished:
    """A command that ended, and the run's folder that it left."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """The run's record."""
        value: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return value

    @property
    def last_line(self) -> str:
        """What the user reads last on stderr."""
        return self.stderr.strip().splitlines()[-1]


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of a run in ``folder``."""
    return [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={folder}", *overrides]


def run(folder: Path, *overrides: str, timeout_s: float = 800) -> Finished:
    """Run the command to its end."""
    done = subprocess.run(
        command(folder, *overrides), capture_output=True, text=True, timeout=timeout_s, cwd=folder.parent
    )
    return Finished(done.returncode, done.stdout, done.stderr, folder)
