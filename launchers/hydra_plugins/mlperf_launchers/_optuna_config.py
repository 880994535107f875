"""The keys under ``hydra.sweeper`` of the sweeper ``optuna``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Require(Enum):
    """What a run's verdict must be for its figures to count."""

    loadgen = "loadgen"  # LoadGen calls the performance test VALID, and no query failed: also of short runs
    valid = "valid"  # valid by MLPerf's rules: full length, accuracy measured and reached
    nothing = "nothing"


class Sampler(Enum):
    """How the next settings are chosen, by Optuna's names."""

    tpe = "tpe"
    nsgaii = "nsgaii"
    random = "random"


@dataclass
class OptunaSweeperConf:
    """``hydra/sweeper=optuna``; Hydra merges the command line into it, so it is not frozen."""

    _target_: str = "hydra_plugins.mlperf_launchers.optuna_sweeper.OptunaSweeper"
    # Figures of result.json; which way is better is known. Several: their Pareto front.
    objective: list[str] = field(default_factory=lambda: ["tokens_per_second"])
    require: Require = Require.loadgen
    constraints: dict[str, float] = field(default_factory=dict)  # figure -> the worst that is allowed
    trials: int = 20  # settings that are tried, those of earlier starts included
    batch: int = 1  # settings asked for at a time: as many jobs can share an engine start or run in parallel
    sampler: Sampler = Sampler.tpe
    seed: int = 0
    # Overrides of a short run before each whole one. Where it breaks a constraint, or more than half of the earlier
    # short runs beat it, the whole run is not made.
    short: list[str] = field(default_factory=list)
    max_failures: int = 5  # so many failed runs one after another end the search
    params: dict[str, str] = field(default_factory=dict)  # settings to search, as on the command line
