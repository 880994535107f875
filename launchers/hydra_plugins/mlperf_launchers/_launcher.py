"""The class behind every launcher to other machines. Only what composing a configuration needs.

A launcher is then a module of a few lines, ``x.py``, without a leading underscore so that Hydra finds it:

    ConfigStore.instance().store(group="hydra/launcher", name="x", node=XLauncherConf, provider="mlperf_launchers")

    class XLauncher(RemoteLauncher):
        name = "x"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


class RemoteLauncher(Launcher):
    """Runs each job of a sweep on other machines; see :mod:`hydra_plugins.mlperf_launchers._remote`."""

    name: ClassVar[str]  # of the launcher and of its modules: ``name``.py, ``_name``.py

    def __init__(self, **_: Any) -> None:
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows; called once, before the first batch.

        Raises:
            UserError: a value that no sweep can run with.
        """
        from hydra_plugins.mlperf_launchers import _compose, _remote

        del task_function  # a node starts the same command as a person would, and no pickled function
        self.hydra_context, self.config = hydra_context, config
        _compose.install(hydra_context)
        _remote.check(_remote.settings_of(config))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one batch of jobs and return their results in the jobs' order; a failure is inside its result.

        Raises:
            UserError: before anything was queued: the jobs cannot run there.
            Interrupted: by SIGINT, SIGTERM or SIGHUP, after every job has been cancelled.
        """
        from hydra_plugins.mlperf_launchers import _remote

        assert self.hydra_context is not None
        assert self.config is not None
        return _remote.launch(self.name, self.hydra_context, self.config, job_overrides, initial_job_idx)
