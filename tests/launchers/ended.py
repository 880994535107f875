"""A command that ran a sweep, after its end; and how to wait for what it does meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """What a sweep's command left. ``folder`` is the sweep's."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    def seen(self, number: int) -> dict[str, Any]:
        """What a job of the tests' small applications wrote down."""
        value: dict[str, Any] = json.loads((self.folder / str(number) / "seen.json").read_text())
        return value

    @property
    def said(self) -> str:
        """All of its output."""
        return self.stdout + self.stderr


def wait_for(condition: Callable[[], object], timeout_s: float = 100) -> None:
    """Until it is so; AssertionError after the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
