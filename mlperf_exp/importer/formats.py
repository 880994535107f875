"""The result files of other benchmarks as metrics under this project's names: rates in 1/s, times in milliseconds.

A figure that a file does not have is absent. Sources of the formats: vLLM, ``vllm/benchmarks/serve.py``; GuideLLM's
``benchmarks.json`` (docs, "Metrics" and "Analyze results"); AIPerf's ``profile_export_aiperf.json``
(docs.nvidia.com/aiperf, JSON export schema); mlcommons/endpoints, ``src/inference_endpoint/metrics/report.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

_SHORT = {"50": "p50", "90": "p90", "99": "p99", "99.9": "p999"}


@dataclass(frozen=True, slots=True)
class Foreign:
    """One result of another benchmark. ``ended_at`` is ISO 8601, None where the file does not say it."""

    tool: str
    name: str
    model: str | None
    metrics: dict[str, float]
    ended_at: str | None = None
    duration_s: float | None = None


def read(value: Any, chosen: str = "auto") -> list[Foreign]:
    """The results in a file's JSON value.

    Raises:
        ValueError: it is not of the chosen format, or of none that is known; the message says why.
    """
    if not isinstance(value, Mapping):
        raise ValueError("it holds no JSON object")
    if chosen == "auto":
        chosen = next((name for name, (fits, _) in FORMATS.items() if fits(value)), "")
        if not chosen:
            raise ValueError(f"it is of no known format ({', '.join(FORMATS)})")
    elif not FORMATS[chosen][0](value):
        raise ValueError(f"it is no result of {chosen}")
    try:
        results = list(FORMATS[chosen][1](value))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it is a broken result of {chosen} ({type(error).__name__}: {error})") from None
    for result in results:
        if not result.metrics.get("completed") or not result.metrics.get("samples_per_second"):
            raise ValueError(f"it is a result of {chosen} in which nothing finished")
    if not results:
        raise ValueError(f"it is a file of {chosen} without results")
    return results


def _vllm(value: Mapping[str, Any]) -> Iterator[Foreign]:
    """``vllm bench serve --save-result``; percentiles beside p99 are there where they were asked for."""
    metrics: dict[str, float] = {}
    completed, failed = value.get("completed"), value.get("failed", 0)
    _put(metrics, "completed", completed)
    _put(metrics, "errors", failed)
    _put(metrics, "queries", value.get("num_prompts"))
    _put(metrics, "samples_per_second", value.get("request_throughput"))
    _put(metrics, "tokens_per_second", value.get("output_throughput"))
    _put(metrics, "output_tokens", value.get("total_output_tokens"))
    _put(metrics, "target_qps", value.get("request_rate"))
    _ratios(metrics, value.get("total_input_tokens"), value.get("total_output_tokens"))
    for ours, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("latency", "e2el")):
        _put(metrics, f"{ours}_mean_ms", value.get(f"mean_{theirs}_ms"))
        _put(metrics, f"{ours}_p50_ms", value.get(f"median_{theirs}_ms"))
        for percentile, short in _SHORT.items():
            _put(metrics, f"{ours}_{short}_ms", value.get(f"p{percentile}_{theirs}_ms"))
    ended = value.get("date")  # local time, such as 20261124-231500
    moment = datetime.strptime(ended, "%Y%m%d-%H%M%S").astimezone(UTC) if isinstance(ended, str) else None
    name = f"vllm bench serve {value.get('model_id')}"
    yield Foreign("vllm bench serve", name, value.get("model_id"), metrics, _iso(moment), value.get("duration"))


def _guidellm(value: Mapping[str, Any]) -> Iterator[Foreign]:
    """Each benchmark of ``benchmarks.json``, over its successful requests; request latency is in seconds there."""
    for place, benchmark in enumerate(value["benchmarks"]):
        model = _guidellm_model(value, benchmark)
        theirs = benchmark["metrics"]
        totals = theirs.get("request_totals") or {}
        metrics: dict[str, float] = {}
        _put(metrics, "completed", totals.get("successful"))
        _put(metrics, "errors", totals.get("errored"))
        _put(metrics, "queries", totals.get("total"))
        _put(metrics, "samples_per_second", _successful(theirs, "requests_per_second").get("mean"))
        _put(metrics, "tokens_per_second", _successful(theirs, "output_tokens_per_second").get("mean"))
        _put(metrics, "output_tokens_mean", _successful(theirs, "output_token_count").get("mean"))
        _put(metrics, "prompt_tokens_mean", _successful(theirs, "prompt_token_count").get("mean"))
        for ours, name, scale in (
            ("ttft", "time_to_first_token_ms", 1.0),
            ("tpot", "inter_token_latency_ms", 1.0),
            ("latency", "request_latency", 1000.0),
        ):
            found = _successful(theirs, name)
            _put(metrics, f"{ours}_mean_ms", found.get("mean"), scale)
            for short in ("p50", "p90", "p99", "p999"):
                _put(metrics, f"{ours}_{short}_ms", (found.get("percentiles") or {}).get(short), scale)
        strategy = (benchmark.get("config") or {}).get("strategy") or {}
        _put(metrics, "target_qps", strategy.get("rate"))
        kind = strategy.get("type_") or f"benchmark {place + 1}"
        ended = benchmark.get("end_time")
        moment = datetime.fromtimestamp(ended, UTC) if _is_number(ended) else None
        duration = benchmark.get("duration")
        yield Foreign("GuideLLM", f"GuideLLM {model or ''} {kind}".strip(), model, metrics, _iso(moment), duration)


def _guidellm_model(value: Mapping[str, Any], benchmark: Mapping[str, Any]) -> str | None:
    """The model's name: in the benchmark's configuration, or in the whole file's, ``args`` before GuideLLM 0.8."""
    spec = (value.get("config") or {}).get("spec") or {}
    for place in ((benchmark.get("config") or {}).get("backend"), spec.get("backend"), value.get("args")):
        if isinstance(place, Mapping) and isinstance(place.get("model"), str):
            return str(place["model"])
    return None


def _successful(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = (metrics.get(name) or {}).get("successful") or {}
    return found if isinstance(found, Mapping) else {}


def _aiperf(value: Mapping[str, Any]) -> Iterator[Foreign]:
    """``profile_export_aiperf.json``: a block of statistics for each metric, with its unit."""
    if value.get("was_cancelled") or value.get("is_complete") is False:
        raise ValueError("it is a result of aiperf that was cancelled")
    metrics: dict[str, float] = {}

    def put(ours: str, name: str, key: str = "avg") -> None:
        block = value.get(name) or {}
        scale = {"sec": 1000.0, "s": 1000.0, "us": 1e-3, "ns": 1e-6}.get(str(block.get("unit")), 1.0)
        _put(metrics, ours, block.get(key), scale if ours.endswith("_ms") else 1.0)

    put("completed", "request_count")
    put("errors", "error_request_count")
    put("samples_per_second", "request_throughput")
    put("tokens_per_second", "output_token_throughput")
    put("output_tokens_mean", "output_sequence_length")
    put("prompt_tokens_mean", "input_sequence_length")
    for ours, name in (
        ("ttft", "time_to_first_token"),
        ("tpot", "inter_token_latency"),
        ("latency", "request_latency"),
    ):
        put(f"{ours}_mean_ms", name)
        for short in ("p50", "p90", "p99"):
            put(f"{ours}_{short}_ms", name, short)
    if "errors" not in metrics and (value.get("request_error_rate") or {}).get("avg") == 0:
        metrics["errors"] = 0.0
    model, rate = _aiperf_load(value.get("input_config") or {})
    _put(metrics, "target_qps", rate)
    ended = value.get("end_time")
    moment = datetime.fromisoformat(ended).astimezone(UTC) if isinstance(ended, str) else None
    seconds = (value.get("benchmark_duration") or {}).get("avg")
    name = f"AIPerf {model or ''}".strip()
    yield Foreign("AIPerf", name, model, metrics, _iso(moment), seconds if _is_number(seconds) else None)


def _aiperf_load(config: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The model's name and the offered rate: in lists of ``models`` and ``phases``, or as files before 0.13 have it."""
    items = (config.get("models") or {}).get("items") or []
    older = (config.get("endpoint") or {}).get("model_names") or []
    name = next((item["name"] for item in items), next(iter(older), None))
    empty: Mapping[str, Any] = {}
    phases: list[Mapping[str, Any]] = config.get("phases") or []
    phase = next((phase for phase in phases if phase.get("kind") == "profiling"), empty)
    return name, phase.get("rate", (config.get("loadgen") or {}).get("request_rate"))


def _endpoints(value: Mapping[str, Any]) -> Iterator[Foreign]:
    """``result_summary.json`` of MLCommons' endpoints; times are nanoseconds there."""
    if value.get("complete") is False:
        raise ValueError(f"it is a result of endpoints that did not come to its end ({value.get('state')})")
    metrics: dict[str, float] = {}
    _put(metrics, "completed", value.get("n_samples_completed"))
    _put(metrics, "errors", value.get("n_samples_failed"))
    _put(metrics, "queries", value.get("n_samples_issued"))
    _put(metrics, "samples_per_second", value.get("qps"))
    _put(metrics, "tokens_per_second", value.get("tps"))
    _put(metrics, "output_tokens_mean", (value.get("output_sequence_lengths") or {}).get("avg"))
    _put(metrics, "prompt_tokens_mean", (value.get("input_sequence_lengths") or {}).get("avg"))
    pattern = (value.get("run_config") or {}).get("load_pattern") or {}
    if pattern.get("type") == "poisson":
        _put(metrics, "target_qps", pattern.get("target_qps"))
    for ours in ("ttft", "tpot", "latency"):
        found = value.get(ours) or {}
        _put(metrics, f"{ours}_mean_ms", found.get("avg"), 1e-6)
        percentiles = found.get("percentiles") or found.get("early_stopping_percentiles") or {}
        for percentile, number in percentiles.items():
            short = _SHORT.get(f"{float(percentile):g}")
            if short:
                _put(metrics, f"{ours}_{short}_ms", number, 1e-6)
    duration = value.get("duration_ns")
    seconds = duration / 1e9 if _is_number(duration) else None
    started = value.get("test_started_at")
    moment = datetime.fromisoformat(started).astimezone(UTC) if isinstance(started, str) else None
    yield Foreign("MLCommons endpoints", "MLCommons endpoints", None, metrics, _iso(moment), seconds)


def _put(metrics: dict[str, float], name: str, value: Any, scale: float = 1.0) -> None:
    """A finite number under its name; anything else is no figure ("inf" is vLLM's word for all at once)."""
    if _is_number(value):
        metrics[name] = float(value) * scale


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ratios(metrics: dict[str, float], prompts: Any, outputs: Any) -> None:
    completed = metrics.get("completed")
    if completed and _is_number(prompts) and _is_number(outputs):
        metrics["prompt_tokens_mean"] = prompts / completed
        metrics["output_tokens_mean"] = outputs / completed


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None


Fits = Callable[[Mapping[str, Any]], bool]
Reads = Callable[[Mapping[str, Any]], Iterator[Foreign]]
FORMATS: dict[str, tuple[Fits, Reads]] = {
    "vllm": (lambda value: {"request_throughput", "completed", "model_id"} <= set(value), _vllm),
    "guidellm": (lambda value: isinstance(value.get("benchmarks"), list), _guidellm),
    "aiperf": (lambda value: isinstance(value.get("request_throughput"), Mapping), _aiperf),
    "endpoints": (lambda value: {"n_samples_issued", "qps"} <= set(value), _endpoints),
}
