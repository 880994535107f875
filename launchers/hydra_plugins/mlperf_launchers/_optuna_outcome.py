"""What a search makes of one run's ``result.json``: its objectives, and by how much it breaks each constraint."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.mlperf_launchers._job import error_of
from hydra_plugins.mlperf_launchers._optuna_config import OptunaSweeperConf, Require

from mlperf_exp.compare.metrics import BY_NAME
from mlperf_exp.errors import InvalidResult, UserError

BOUNDED = ("ttft", "tpot", "latency")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. ``broken``: constraint -> by how much, above 0 where it is broken; ``failure``: it gave no figures."""

    values: tuple[float, ...] = ()
    broken: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether the figures count."""
        return self.failure is None and all(amount <= 0 for amount in self.broken.values())

    @property
    def why(self) -> str:
        """What is against it, in a few words; empty where nothing is."""
        return self.failure or ", ".join(name for name, amount in self.broken.items() if amount > 0)


def check_figures(settings: OptunaSweeperConf) -> None:
    """Refuse objectives and constraints of which nobody knows which way is better.

    Raises:
        UserError: naming the key.
    """
    known = [name for name, metric in BY_NAME.items() if metric.better]
    wanted = {"objective": settings.objective, "constraints": list(settings.constraints)}
    for key, names in wanted.items():
        for name in names:
            if name not in known:
                raise UserError(f"hydra.sweeper.{key}", f"there is no figure {name}", f"Allowed: {', '.join(known)}")
    if not settings.objective or len(set(settings.objective)) < len(settings.objective):
        raise UserError("hydra.sweeper.objective", "needs one figure or several, each once", "Name what is to be best")


def outcome(settings: OptunaSweeperConf, returned: JobReturn, short: bool) -> Outcome:
    """What came of a job. A short run is held to the scenario's bounds, and not to LoadGen's or MLPerf's verdict."""
    result = _result(returned)
    if not result:
        error = error_of(returned)
        return Outcome(failure=" ".join(str(error).split()) if error is not None else "it left no result")
    metrics: Mapping[str, Any] = result.get("metrics") or {}
    absent = [name for name in settings.objective if not _number(metrics.get(name))]
    if absent:
        return Outcome(failure=f"it measured no {', '.join(absent)}")
    broken = {name: _excess(metrics.get(name), bound, BY_NAME[name].better)
              for name, bound in settings.constraints.items()}  # fmt: skip
    if short and settings.require is not Require.nothing:
        broken |= {"queries failed": float(metrics.get("errors") or 0.0), **_bounds(result, metrics)}
    elif settings.require is Require.loadgen:
        broken["not VALID by LoadGen"] = 0.0 if _loadgen_valid(result, metrics) else 1.0
    elif settings.require is Require.valid:
        broken["not valid"] = 0.0 if (result.get("verdict") or {}).get("valid") is True else 1.0
    return Outcome(tuple(float(metrics[name]) for name in settings.objective), broken)


def beats(settings: OptunaSweeperConf, one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is at least as good in all objectives, and better in one."""
    gains = [BY_NAME[name].better * (a - b) for name, a, b in zip(settings.objective, one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


def _result(returned: JobReturn) -> Mapping[str, Any]:
    if returned.status is JobStatus.COMPLETED and isinstance(returned.return_value, Mapping):
        return returned.return_value
    if isinstance(error_of(returned), InvalidResult) and returned.hydra_cfg is not None:  # fail_on_invalid=true
        with contextlib.suppress(OSError, ValueError):
            folder = Path(str(returned.hydra_cfg.hydra.runtime.output_dir))
            found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            return found if isinstance(found, Mapping) else {}
    return {}


def _loadgen_valid(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """LoadGen's word on the performance test; a training run, which has none, by its verdict."""
    test = (result.get("tests") or {}).get("performance")
    if test is None:
        return (result.get("verdict") or {}).get("valid") is True
    return (test.get("loadgen") or {}).get("result_validity") == "VALID" and not metrics.get("errors")


def _bounds(result: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, float]:
    rules = ((result.get("plan") or {}).get("config") or {}).get("scenario") or {}
    return {
        f"{name}_p99_ms over its bound": _excess(metrics.get(f"{name}_p99_ms"), rules[f"{name}_ms"], -1)
        for name in BOUNDED
        if rules.get(f"{name}_ms") is not None
    }


def _excess(value: Any, bound: float, better: int) -> float:
    """By which share of the bound a figure is worse than it; below 0 where it is better."""
    if not _number(value):
        return 1.0
    return better * (bound - float(value)) / (abs(bound) or 1.0)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
