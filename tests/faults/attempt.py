"""One run that something goes wrong with: started as a user starts it, hurt, and looked at afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MARK = "MLPERF_FAULT_MARK"  # in the environment of all that a run starts
LONG = {
    "offline": ["model=llama3_tiny", "backend=simulated", "backend.concurrency=20", "scenario=offline",
                "scenario.min_duration_s=0", "scenario.min_query_count=200000", "scenario.mode=performance"],
    "server": ["model=llama3_tiny", "backend=simulated", "scenario=server", "scenario.target_qps=100",
               "scenario.min_duration_s=400", "scenario.mode=performance"],
    "train": ["model=resnet_tiny", "hw=cpu", "scenario=train", "division=open", "scenario.max_epochs=1000",
              "scenario.eval_offset=1000", "scenario.target=100", "backend.threads=1", "backend.log_every_steps=2",
              "backend.checkpoint_every_s=2"],
}  # fmt: skip
SHORT = {
    "offline": [*LONG["offline"], "scenario.min_query_count=500", "scenario.samples=500", "backend.tpot_ms=0.1"],
    "server": [*LONG["server"], "scenario.min_duration_s=2", "scenario.samples=100"],
    "train": [*LONG["train"], "dataset=synthetic_images", "dataset.samples=640", "scenario.max_epochs=4"],
}
STEADY = {  # ends by itself, and not before something was done to it
    "offline": [*SHORT["offline"], "scenario.min_query_count=5000"],
    "server": [*SHORT["server"], "scenario.min_duration_s=8"],
    "train": [*SHORT["train"], "scenario.max_epochs=40"],
}
ENGINE = {  # on vLLM, for as long as it takes
    "offline": [
        "experiment=quickstart",
        "scenario=offline",
        "scenario.min_query_count=4000",
        "backend.engine.max_num_seqs=8",
    ],
    "server": ["experiment=quickstart", "scenario.target_qps=6", "scenario.min_duration_s=400"],
    "train": [*LONG["train"], "backend.processes=2"],
}
NO_TRACKING = "tracking.enabled=false"


@dataclass
class Attempt:
    """A run in a folder of its own. ``bound_s``: within how long it has to end after the fault."""

    folder: Path
    scenario: str
    bound_s: float = 120.0
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[str] | None = None
    hurt_at: float = 0.0
    stderr: str = ""
    status: int | None = None
    seconds: float = 0.0

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(
        self,
        *words: str,
        terminal: bool = False,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start the command, behind ``prefix``; with ``terminal`` on one of its own, which :meth:`hang_up` closes."""
        command = [*prefix, sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={self.run_dir}", *words]
        variables = os.environ | {MARK: self.mark, "SPT_NOENV": "1"} | (environment or {})
        out = (self.folder / "stderr").open("w")
        self._terminal = None
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": out}
        if terminal:
            self._terminal, inner = pty.openpty()
            streams = {"stdin": inner, "stdout": inner, "stderr": out}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=variables, text=True, start_new_session=True, **streams,
            preexec_fn=_take_terminal if terminal else None,
        )  # fmt: skip
        if terminal:
            os.close(inner)
        out.close()

    def until(self, ready: Callable[[], object], seconds: float = 240) -> None:
        """Wait until something is so while the run goes on."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.process is not None
            assert self.process.poll() is None, f"the run ended before its fault: {self.said()}"
            assert time.monotonic() < end, f"the run did not come so far in {seconds} s: {self.said()}"
            time.sleep(0.05)

    def begun(self, count: int = 50) -> None:
        """Wait until so many queries (images, in training) are done."""
        self.until(lambda: self.done() >= count)

    def done(self) -> int:
        """Queries completed so far, by the live log."""
        try:
            lines = (self.run_dir / "live.jsonl").read_text().splitlines()
        except OSError:
            return 0
        for line in reversed(lines):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return int(json.loads(line)["completed"])
        return 0

    def hurt(self) -> None:
        """Now it happens."""
        self.hurt_at = time.monotonic()

    def hang_up(self) -> None:
        """Close the terminal."""
        assert self._terminal is not None
        os.close(self._terminal)

    def end(self) -> None:
        """Wait for the run's end; one that does not end within the bound is killed, and its status stays None."""
        assert self.process is not None
        self.hurt_at = self.hurt_at or time.monotonic()
        try:
            self.status = self.process.wait(self.bound_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.seconds = time.monotonic() - self.hurt_at
        self.stderr = (self.folder / "stderr").read_text(errors="replace")

    def said(self) -> str:
        """The last line on stderr."""
        text = (self.folder / "stderr").read_text(errors="replace") if not self.stderr else self.stderr
        lines = text.strip().splitlines()
        return lines[-1] if lines else ""

    def result(self) -> dict[str, Any]:
        """The record, empty where there is none; a torn one is an error."""
        path = self.run_dir / "result.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def family(self) -> list[psutil.Process]:
        """All processes that this run started and that still live."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError, psutil.Error):
                if needle in path.read_bytes():
                    process = psutil.Process(int(path.parent.name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def engines(self) -> list[psutil.Process]:
        """vLLM's processes, the one that computes first; of a training the last rank."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
            if self.scenario == "train":
                ranks = [p for p in children if "mlperf_exp.train.worker" in p.cmdline()]
                return [max(ranks, key=lambda p: int(p.environ()["RANK"]))]
            found = [p for p in children if "spawn_main" in " ".join(p.cmdline()) or "VLLM" in p.name()]
            return sorted(found, key=lambda p: -p.memory_info().rss)
        return []

    def left_behind(self, seconds: float = 120) -> list[str]:
        """What of the run still lives after a while, by name."""
        end = time.monotonic() + seconds
        while (left := self.family()) and time.monotonic() < end:
            time.sleep(0.2)
        names = [" ".join(p.cmdline())[:80] for p in left if p.is_running()]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return names

    def later_run(self) -> int:
        """The exit status of a short run beside it, afterwards."""
        words = [*SHORT[self.scenario], NO_TRACKING, f"hydra.run.dir={self.folder / 'later'}"]
        command = [sys.executable, "-m", "mlperf_exp", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, timeout=300, check=False).returncode


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
