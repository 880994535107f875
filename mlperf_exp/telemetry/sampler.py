"""The measured process's side of telemetry: starts the sampler, and stops it whatever happens. Nothing here raises."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from mlperf_exp.config import Telemetry

_STOP_TIMEOUT_S = 3.0


class Sampler:
    """One run's sampling process; a context manager, made by ``start``."""

    def __init__(self, process: subprocess.Popen[bytes] | None, problem: str | None = None) -> None:
        self._process = process
        self.problem = problem  # why nothing, or not everything, was sampled

    @classmethod
    def start(cls, run_dir: Path, config: Telemetry, gpus: int, without: Collection[int] = ()) -> Sampler:
        """Start sampling into ``run_dir``; returns at once.

        Args:
            run_dir: the run's folder, which exists.
            config: whether, and how often.
            gpus: how many of the visible GPUs the run uses.
            without: processes started by this one that are no part of the measured system.
        """
        if not config.enabled:
            return cls(None, "telemetry.enabled is false")
        command = [
            sys.executable, "-m", "mlperf_exp.telemetry", "--into", str(run_dir), "--interval", str(config.interval_s),
            "--gpus", str(gpus), "--parent", str(os.getpid()), "--without", *map(str, without),
        ]  # fmt: skip
        try:
            # A session of its own: Ctrl-C reaches the run, and the run ends the sampler.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return cls(None, f"the sampler did not start: {error}")
        return cls(process)

    @property
    def pid(self) -> int | None:
        """The sampling process; None where there is none."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, after one more sample; by force where it does not answer. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            self.problem = f"the sampler ended before the run, with status {process.returncode}"
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.problem = f"the sampler did not end within {_STOP_TIMEOUT_S:g} s and was killed"
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
