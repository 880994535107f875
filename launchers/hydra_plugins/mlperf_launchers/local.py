"""The launcher ``local``: a fresh process for each engine on this machine. Only what composing a configuration needs.

LoadGen and vLLM want a process of their own: LoadGen cannot stop a test, and an engine does not give all its memory
back. A job that crashes there takes neither the sweep nor the other jobs with it. Jobs that can use the same engine
share a process, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.mlperf_launchers._config import LocalLauncherConf, OnError
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra_plugins.mlperf_launchers._sweep import Sweep


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="mlperf_launchers")


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own; see :mod:`hydra_plugins.mlperf_launchers._local`."""

    def __init__(
        self,
        max_parallel: int,
        timeout_s: float | None,
        on_error: OnError,
        stream_logs: bool,
        env: Mapping[str, str],
        grace_s: float,
        reuse_engine: bool = True,
        retries: int = 1,
    ) -> None:
        self.max_parallel = max_parallel
        self.timeout_s = timeout_s
        self.on_error = on_error
        self.stream_logs = stream_logs
        self.env = dict(env)
        self.grace_s = grace_s
        self.reuse_engine = reuse_engine
        self.retries = retries
        self.sweep: Sweep | None = None  # what lasts from one batch to the next
        # The keys that a search varies. While set, more batches will come: the last engine is kept for them, and the
        # sweep stays open until ``finish``.
        self.open_for: frozenset[str] | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows; called once, before the first batch.

        Raises:
            UserError: a value that no sweep can run with.
        """
        from hydra_plugins.mlperf_launchers import _compose, _local

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        _compose.install(hydra_context)
        _local.check(self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs and return their results in the jobs' order; a failure is inside its result.

        Raises:
            Interrupted: by SIGINT, SIGTERM or SIGHUP, after the running jobs have ended.
        """
        from hydra_plugins.mlperf_launchers import _local

        return _local.launch(self, job_overrides, initial_job_idx)

    def finish(self) -> None:
        """No more batches will come: stop the engine that was kept, and close the sweep."""
        from hydra_plugins.mlperf_launchers import _local

        _local.finish(self)
