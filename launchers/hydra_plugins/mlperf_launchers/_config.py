"""The keys under ``hydra.launcher``: those that all launchers share, and those of each.

They are here and not in the launchers' own modules because Hydra executes those before Python knows them by name, which
dataclasses with postponed annotations cannot bear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# What a failed job does to the jobs that wait: ``continue`` runs them all, ``fail_fast`` starts no more of them (those
# that run are let finish). Made by call because ``continue`` is a keyword, and OmegaConf goes by the members' names.
OnError = Enum("OnError", {"continue": "continue", "fail_fast": "fail_fast"}, module=__name__)


@dataclass
class LauncherConf:
    """What every launcher understands; Hydra merges the command line into it, so it is not frozen."""

    max_parallel: int = 1  # jobs at a time; with more than one on a machine they disturb each other's measurement
    timeout_s: float | None = None  # of one job, its process start included; None: no limit
    on_error: OnError = OnError["continue"]
    stream_logs: bool = True  # False: what a job prints goes to .job_N.log in its folder only
    env: dict[str, str] = field(default_factory=dict)  # extra variables; Hydra saves them in the sweep: no secrets


@dataclass
class LocalLauncherConf(LauncherConf):
    """``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.mlperf_launchers.local.LocalLauncher"
    # How long a job may take to end, after an interrupt or after its result, before it is ended by force.
    grace_s: float = 60.0
    # Jobs that differ only in their load run one after another in one process, on one start of the engine.
    reuse_engine: bool = True
    # How often a job that failed is tried again, over all later starts of the sweep in the same folder.
    retries: int = 1
