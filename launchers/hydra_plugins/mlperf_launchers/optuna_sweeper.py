"""The sweeper ``optuna``: a search over a sweep's settings. Only what composing a configuration needs.

The sweeper that Hydra's authors published wants Optuna below 3, which no current Python stack holds any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.mlperf_launchers._optuna_config import OptunaSweeperConf
from omegaconf import DictConfig

from mlperf_exp.errors import missing_extra

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="mlperf_launchers")


class OptunaSweeper(Sweeper):
    """Asks Optuna which settings come next; see :mod:`hydra_plugins.mlperf_launchers._optuna`."""

    def __init__(self, **_: Any) -> None:
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra knows.

        Raises:
            UserError: a value that no search can run with, or Optuna is not installed.
        """
        from hydra.core.plugins import Plugins

        if find_spec("optuna") is None:
            raise missing_extra("optuna", "hydra/sweeper=optuna", "optuna")
        from hydra_plugins.mlperf_launchers import _optuna

        self.hydra_context, self.config = hydra_context, config
        _optuna.check(_optuna.settings_of(config))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run the search over the settings of ``arguments`` that have several values.

        Raises:
            UserError: there is nothing to search, or the folder holds another search.
            RunFailed: too many runs failed one after another.
            Interrupted: by a signal; the same command with ``hydra.sweep.dir=FOLDER`` goes on.
        """
        from hydra_plugins.mlperf_launchers import _optuna

        _optuna.search(self, arguments)
