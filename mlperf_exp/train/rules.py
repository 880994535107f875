"""What MLPerf Training says of each benchmark, by the model's ``benchmark``: its data, target and hyperparameters.

Source: mlcommons/training_policies (``training_rules.adoc``) and mlcommons/logging (``compliance_checker``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlperf_exp.config import Config, Model


@dataclass(frozen=True, slots=True)
class TrainingBenchmark:
    """One benchmark: ``name`` is the one in MLPerf's log, ``runs`` how many make a result.

    ``eval_period`` counts epochs of images, or samples of text; ``train_samples`` is None where no rule says it.
    ``retired``: ``ruleset`` is the last that had it.
    """

    name: str
    ruleset: str
    metric: str
    target: float
    train_samples: int | None
    eval_samples: int
    runs: int
    eval_period: int
    retired: bool


RESNET = TrainingBenchmark("resnet", "4.0.0", "top1", 75.9, 1_281_167, 50_000, runs=5, eval_period=4, retired=True)
LLAMA31_8B = TrainingBenchmark(
    "llama31_8b", "6.1.0", "log_perplexity", 3.3, None, 1024, runs=10, eval_period=12_288, retired=False
)
BENCHMARKS = (RESNET, LLAMA31_8B)
_BY_BENCHMARK = {"resnet50": RESNET, "llama31_8b": LLAMA31_8B}
_LOWER_IS_BETTER = ("log_perplexity",)


def benchmark(model: Model) -> TrainingBenchmark | None:
    """The benchmark that ``model`` is; None: it borrows one's settings at most, as ResNet-101 does."""
    return _BY_BENCHMARK.get(model.benchmark or "") if model.target is not None else None


def reaches(metric: str, value: float, target: float) -> bool:
    """Whether a metric is as good as its target, or better; what is no number is not."""
    return value <= target if metric in _LOWER_IS_BETTER else value >= target


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better."""
    return metric in _LOWER_IS_BETTER


def power_of_two_times(value: float, base: float) -> bool:
    """Whether ``value`` is ``base`` times a power of two: so MLPerf wants weight decay."""
    power = math.log2(value / base) if value > 0 else math.nan
    return value > 0 and abs(power - round(power)) < 1e-9


def ranks(config: Config) -> int:
    """The processes of a training run, over all nodes."""
    return int(config.hw.nodes) * (config.backend.processes or max(1, config.hw.gpus_per_node))
