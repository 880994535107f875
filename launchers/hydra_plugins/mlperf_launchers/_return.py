"""Hydra's callback that keeps what a task returned, for the side that submitted it (a search goes by it)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra_plugins.mlperf_launchers._files import RETURN
from omegaconf import DictConfig

from mlperf_exp.files import write_atomic


class KeepReturn(Callback):
    """Writes ``return.json`` where the value is plain data; a run's record, ``result.json``, is not written twice."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called by Hydra in the job's process."""
        folder = Path(str(config.hydra.runtime.output_dir))
        if job_return.status is not JobStatus.COMPLETED or (folder / "result.json").exists():
            return
        with contextlib.suppress(TypeError, ValueError, OSError):
            write_atomic(folder / RETURN, json.dumps(job_return.return_value))
