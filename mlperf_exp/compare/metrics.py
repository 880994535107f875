"""The figures that runs are compared by: label, unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of ``result.json``'s ``metrics``. ``better``: 1 more is better, -1 less is, 0 neither."""

    name: str
    label: str
    unit: str
    better: int
    judged: bool = False  # held against a baseline


METRICS = (
    Metric("samples_per_second", "Samples per second", "samples/s", 1, True),
    Metric("tokens_per_second", "Tokens per second", "tokens/s", 1, True),
    Metric("ttft_p99_ms", "TTFT p99", "ms", -1, True),
    Metric("tpot_p99_ms", "TPOT p99", "ms", -1, True),
    Metric("latency_p99_ms", "Latency p99", "ms", -1, True),
    Metric("latency_p90_ms", "Latency p90", "ms", -1),
    Metric("joules_per_token", "Energy per token", "J/token", -1, True),
    Metric("joules_per_sample", "Energy per sample", "J/sample", -1, True),
    Metric("tokens_per_second_per_watt", "Tokens/s per watt", "tokens/s/W", 1),
    Metric("gpu_power_mean_w", "GPU power, mean", "W", 0),
    Metric("wall_samples_per_second", "Over the whole wall time", "samples/s", 1),
    Metric("full_dataset_hours", "Full data set", "h", -1),
    Metric("rouge1", "ROUGE-1", "", 1, True),
    Metric("rouge2", "ROUGE-2", "", 1, True),
    Metric("rougeL", "ROUGE-L", "", 1, True),
    Metric("f1", "F1", "", 1, True),
    Metric("accuracy", "Accuracy", "%", 1, True),
    Metric("top1", "Top-1", "%", 1, True),
    Metric("log_perplexity", "Log perplexity", "", -1, True),
    Metric("train_samples_per_second", "Training samples per second", "samples/s", 1, True),
    Metric("train_tokens_per_second", "Training tokens per second", "tokens/s", 1, True),
    Metric("time_to_train_minutes", "Time to train", "min", -1, True),
    Metric("tail_s", "Tail", "s", -1),
    Metric("router_overhead_p99_ms", "Router's overhead p99", "ms", -1),
    Metric("errors", "Errors", "", -1),
)
BY_NAME = {metric.name: metric for metric in METRICS}
