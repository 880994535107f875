"""From a command line's sweeps to what Optuna draws from, and back to overrides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mlperf_exp.errors import UserError


@dataclass(frozen=True, slots=True)
class Space:
    """``searched``: key -> distribution; ``fixed``: the overrides that all runs have, as text."""

    searched: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]

    @property
    def size(self) -> int | None:
        """How many settings there are; None where there is no end of them."""
        counts = [_count(distribution) for distribution in self.searched.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The overrides of one trial."""
        return (*self.fixed, *(f"{key}={value}" for key, value in params.items()))


def read(arguments: Sequence[str], params: Mapping[str, str], loader: ConfigLoader) -> Space:
    """What is to be searched; ``params`` are more arguments, from the configuration.

    Raises:
        UserError: nothing has several values, or a sweep is of a kind that cannot be searched.
    """
    texts = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    searched: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(texts):
        key = override.get_key_element()
        searched.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            searched[key] = _distribution(override, key)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not searched:
        raise UserError(
            "hydra/sweeper",
            "optuna has nothing to search: no setting has several values",
            "Give some: backend.engine.max_num_seqs=64,128,256 'scenario.target_qps=interval(5,50)'",
        )
    return Space(searched, tuple(fixed.values()))


def _distribution(override: Override, key: str) -> BaseDistribution:
    value: Any = override.value()
    if isinstance(value, RangeSweep) and not value.shuffle:
        return _range(value, key)
    if override.is_choice_sweep() or override.is_range_sweep() or override.is_discrete_sweep():
        return CategoricalDistribution([str(one) for one in override.sweep_iterator(transformer=Transformer.encode)])
    assert isinstance(value, IntervalSweep)
    low, high = value.start, value.end
    if low is None or high is None or not low < high:
        raise UserError(key, f"interval({low},{high}) is empty", "Give the smaller end first")
    log = "log" in value.tags
    if log and low <= 0:
        raise UserError(key, f"interval({low},{high}) has no logarithm", "Begin above 0, or leave out tag(log, ...)")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(value: RangeSweep, key: str) -> BaseDistribution:
    start, stop, step = value.start, value.stop, value.step
    if start is None or stop is None or not step > 0 or not start < stop:
        raise UserError(key, "this range is empty or falls", "Write it rising: range(1,10,2)")
    count = math.ceil((stop - start) / step)
    if all(isinstance(one, int) for one in (start, stop, step)):
        return IntDistribution(int(start), int(start + (count - 1) * step), step=int(step))
    return FloatDistribution(float(start), float(start + (count - 1) * step), step=float(step))


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        whole: int = (distribution.high - distribution.low) // distribution.step
        return whole + 1
    if isinstance(distribution, FloatDistribution) and distribution.step:
        steps: int = round((distribution.high - distribution.low) / distribution.step)
        return steps + 1
    return None
