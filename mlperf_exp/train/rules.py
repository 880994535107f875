"""What MLPerf Training says of each benchmark, by the model's ``benchmark``: its data, target and hyperparameters.

Source: mlcommons/training_policies (``training_rules.adoc``) and mlcommons/logging (``compliance_checker``); ResNet-50
was accepted last in training 4.0.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlperf_exp.config import Config, Model


@dataclass(frozen=True, slots=True)
class TrainingBenchmark:
    """One benchmark: ``name`` is the one in MLPerf's log, ``runs`` how many make a result."""

    name: str
    ruleset: str
    metric: str
    target: float
    train_samples: int
    eval_samples: int
    runs: int
    eval_period: int


RESNET = TrainingBenchmark("resnet", "4.0.0", "top1", 75.9, 1_281_167, 50_000, runs=5, eval_period=4)
BENCHMARKS = (RESNET,)
_BY_BENCHMARK = {"resnet50": RESNET}


def benchmark(model: Model) -> TrainingBenchmark | None:
    """The benchmark that ``model`` is; None: it borrows one's settings at most, as ResNet-101 does."""
    return _BY_BENCHMARK.get(model.benchmark or "") if model.target is not None else None


def power_of_two_times(value: float, base: float) -> bool:
    """Whether ``value`` is ``base`` times a power of two: so MLPerf wants weight decay."""
    power = math.log2(value / base) if value > 0 else math.nan
    return value > 0 and abs(power - round(power)) < 1e-9


def ranks(config: Config) -> int:
    """The processes of a training run, over all nodes."""
    return int(config.hw.nodes) * (config.backend.processes or max(1, config.hw.gpus_per_node))
