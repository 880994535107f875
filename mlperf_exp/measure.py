"""LoadGen's logs and the per-query records -> metrics; the only place where nanoseconds are converted.

Latencies come from LoadGen where it came to its end (they count from the scheduled time, as MLPerf wants), else from
our own records (from sending). A metric that was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_exp.config import Config, Scenario
from mlperf_exp.records import Records

# metric prefix -> (LoadGen's key for percentile p, LoadGen's key of the mean)
_LATENCIES = {
    "latency": ("result_{}_percentile_latency_ns", "result_mean_latency_ns"),
    "ttft": ("result_first_token_{}_percentile_latency_ns", "result_first_token_mean_latency_ns"),
    "tpot": ("result_time_per_output_token_{}_percentile_ns", "result_time_to_output_token_mean"),
}
_PERCENTILES = {"p50": "50.00", "p90": "90.00", "p99": "99.00", "p999": "99.90"}
_ESTIMATES = {  # MLPerf's figure where one query follows the other: p90 and p99 with statistical confidence
    Scenario.single_stream: "early_stopping_latency_ss",
    Scenario.multi_stream: "early_stopping_latency_ms",
}
_RATES = {
    Scenario.server: ("result_completed_samples_per_sec", "result_completed_tokens_per_second"),
    Scenario.interactive: ("result_completed_samples_per_sec", "result_completed_tokens_per_second"),
    Scenario.offline: ("result_samples_per_second", "result_tokens_per_second"),
}


def performance_metrics(
    config: Config, records: Records, loadgen: dict[str, Any], prompt_tokens: Sequence[int] | None
) -> dict[str, float]:
    """The figures of a performance test: rates (1/s), latencies (ms), counts."""
    own = _own(records)
    metrics = {**own, **_from_loadgen(config, loadgen)}
    if config.scenario.target_qps is not None and config.scenario.name is not Scenario.offline:
        metrics["target_qps"] = config.scenario.target_qps
    if records.issued and prompt_tokens is not None:
        index = np.array(records.index[: records.issued], dtype=np.int64)
        metrics["prompt_tokens_mean"] = float(np.asarray(prompt_tokens)[index].mean())
    for name in ("latency", "ttft"):
        if f"{name}_p99_ms" in own:
            metrics[f"sent_{name}_p99_ms"] = own[f"{name}_p99_ms"]  # from sending, beside LoadGen's from schedule
    return metrics


def _own(records: Records) -> dict[str, float]:
    count = records.issued  # LoadGen may still append: copies, all of this length
    issued = np.array(records.issued_ns[:count], dtype=np.int64)
    first = np.array(records.first_token_ns[:count], dtype=np.int64)
    done = np.array(records.completed_ns[:count], dtype=np.int64)
    tokens = np.array(records.tokens[:count], dtype=np.int64)
    good = done > 0
    good[[row for row in list(records.errors) if row < count]] = False
    metrics = {
        "queries": float(count),
        "completed": float(good.sum()),
        "errors": float(len(records.errors)),
        "duplicates": float(records.duplicates),
    }
    if not good.any():
        return metrics
    span_s = (done[good].max() - issued.min()) / 1e9
    metrics["samples_per_second"] = float(good.sum() / span_s)
    if tokens.any():  # else the system answers without tokens
        metrics["tokens_per_second"] = float(tokens[good].sum() / span_s)
        metrics["output_tokens_mean"] = float(tokens[good].mean())
        metrics["output_tokens"] = float(tokens[good].sum())
    _distribution(metrics, "latency", (done - issued)[good] / 1e6)
    _distribution(metrics, "ttft", (first - issued)[good & (first > 0)] / 1e6)
    several = good & (first > 0) & (tokens > 1)
    _distribution(metrics, "tpot", (done - first)[several] / (tokens[several] - 1) / 1e6)
    return metrics


def _distribution(metrics: dict[str, float], name: str, values_ms: np.ndarray[Any, Any]) -> None:
    if not len(values_ms):
        return
    metrics[f"{name}_mean_ms"] = float(values_ms.mean())
    for short, percentile in _PERCENTILES.items():
        metrics[f"{name}_{short}_ms"] = float(np.percentile(values_ms, float(percentile)))


def _from_loadgen(config: Config, loadgen: dict[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if "result_validity" not in loadgen:
        return metrics
    for name, (percentile_key, mean_key) in _LATENCIES.items():
        for short, percentile in _PERCENTILES.items():
            value = loadgen.get(percentile_key.format(percentile))
            if name == "latency" and value is None:  # multi stream: of a query of several samples
                value = loadgen.get(f"result_{percentile}_percentile_per_query_latency_ns")
            if isinstance(value, int | float):
                metrics[f"{name}_{short}_ms"] = value / 1e6
        if isinstance(loadgen.get(mean_key), int | float):
            metrics[f"{name}_mean_ms"] = loadgen[mean_key] / 1e6
    estimate = loadgen.get(_ESTIMATES.get(config.scenario.name, ""))
    if isinstance(estimate, int | float):
        metrics["early_stopping_latency_ms"] = estimate / 1e6
    samples_key, tokens_key = _RATES.get(config.scenario.name, ("", ""))
    for metric, key in (("samples_per_second", samples_key), ("tokens_per_second", tokens_key)):
        if isinstance(loadgen.get(key), int | float):
            metrics[metric] = float(loadgen[key])
    return metrics


def window_ns(records: Records) -> tuple[int, int] | None:
    """The measured window: from the first query sent to the last answer, or the last query sent if that is later."""
    if not records.issued:
        return None
    return records.issued_ns[0], max(max(records.completed_ns), records.issued_ns[records.issued - 1])


def load_phases(records: Records) -> dict[str, float]:
    """``load_s``, from the first to the last query sent, and ``drain_s``, from there to the last answer."""
    if not records.issued:
        return {}
    first, last = records.issued_ns[0], records.issued_ns[records.issued - 1]
    end = max(max(records.completed_ns), last)
    return {"load_s": (last - first) / 1e9, "drain_s": (end - last) / 1e9}


def honest(
    metrics: dict[str, float], total_s: float, full_samples: int | None, shared_s: float = 0.0
) -> dict[str, float]:
    """The figures that hide nothing: samples over the whole wall time, and the time the full data set would take.

    ``wall_samples_per_second`` divides the performance test's completed samples by the run's whole wall time, start of
    the process to the verdict. ``full_dataset_hours`` adds what the run spent outside the load to the time that
    ``full_samples`` take at the measured rate.

    A run that found its engine running (a sweep's jobs share one) is charged with that start in full, ``shared_s``, as
    if it had been alone; ``own_wall_samples_per_second`` is then its own wall time's figure.
    """
    completed, rate = metrics.get("completed", 0.0), metrics.get("samples_per_second", 0.0)
    if not completed or total_s <= 0:
        return {}
    figures = {"own_wall_samples_per_second": completed / total_s} if shared_s else {}
    total_s += shared_s
    figures["wall_samples_per_second"] = completed / total_s
    if full_samples and rate > 0:
        overhead_s = max(0.0, total_s - completed / rate)
        figures["full_dataset_samples"] = float(full_samples)
        figures["full_dataset_hours"] = (full_samples / rate + overhead_s) / 3600
    return figures


def read_detail_log(log_dir: Path) -> dict[str, Any]:
    """The keys of ``mlperf_log_detail.txt`` with their last values; empty where there is no log.

    A line that is cut short is passed over: LoadGen's own verdict is then missing, which the judge sees. Errors and
    invalid reasons, which LoadGen may log several times, are collected in lists under their keys.
    """
    import json

    values: dict[str, Any] = {}
    path = log_dir / "mlperf_log_detail.txt"
    if not path.exists():
        return values
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith(":::MLLOG "):
            continue
        try:
            entry = json.loads(line[len(":::MLLOG ") :])
            key, value = str(entry["key"]), entry["value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if key.startswith("error_") or key == "result_invalid_reason":
            values.setdefault(key, []).append(value)
        else:
            values[key] = value
    return values
