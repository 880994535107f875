"""``telemetry.jsonl`` -> what the measured window took: joules, power, clocks, memory, and whether to trust them.

Only the window counts: from the first query sent to the last answer, on the clock that the samples carry. Joules are
the difference of the GPU's own counter where every sample has it (its steps are tens of milliseconds), else power
integrated by the trapezoid rule; both are interpolated at the window's edges. They are valid where samples cover it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.telemetry.nvml import THROTTLING

Floats = NDArray[np.float64]
Samples = Sequence[Mapping[str, Any]]

LEAST_COVERAGE = 0.95  # of the window, by pairs of samples that are not too far apart
LEAST_SAMPLES = 5  # inside the window
_GAP_INTERVALS, _GAP_S = 4.0, 2.0  # a gap is longer than so many intervals, and than so many seconds
_THROTTLED = 0.01  # of the window's samples: what is more is worth a warning


@dataclass(frozen=True, slots=True)
class Summary:
    """What telemetry says of one measured window.

    ``record`` goes into ``result.json`` under ``telemetry``, ``metrics`` under ``metrics``.
    """

    record: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the samples of a file that may end in half a line; empty where there is none."""
    header: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return header, samples
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "ns" in value:
            samples.append(value)
        elif isinstance(value, dict) and not header:
            header = value
    return header, samples


def summarize(
    header: Mapping[str, Any],
    samples: Samples,
    window_ns: tuple[int, int] | None,
    measured: Mapping[str, float],
    not_the_system: str | None = None,
) -> Summary:
    """The window's figures; ``measured`` holds ``output_tokens`` and ``completed``.

    ``not_the_system`` says why this host's energy is not the measured system's, if it is not.
    """
    record: dict[str, Any] = {
        "interval_s": header.get("interval_s"),
        "samples": len(samples),
        "unreadable": dict(header.get("unreadable") or {}),
        "gpus": list(header.get("gpus") or ()),
    }
    if window_ns is None or not samples:
        why = "Nothing was sampled." if not samples else "No performance test was measured."
        return Summary(record | {"valid": False, "reasons": [why]})
    clock = np.array([sample["ns"] for sample in samples], dtype=np.float64)
    at: Floats = (clock - window_ns[0]) / 1e9
    end = (window_ns[1] - window_ns[0]) / 1e9
    inside = (at >= 0) & (at <= end)
    interval = float(header.get("interval_s") or 0.5)
    coverage, longest = _coverage(at, end, max(_GAP_INTERVALS * interval, _GAP_S))
    count = int(inside.sum())
    reasons = []
    if coverage < LEAST_COVERAGE:
        least = f"not the {100 * LEAST_COVERAGE:g} % that energy needs"
        reasons.append(f"Samples cover {100 * coverage:.1f} % of the measured {end:.1f} s, {least}.")
    if count < LEAST_SAMPLES:
        reasons.append(f"{count} samples lie in the measured {end:.1f} s, too few: lower telemetry.interval_s.")
    record |= {
        "window_s": end,
        "samples_in_window": count,
        "rate_hz": count / end if end > 0 else None,
        "coverage": coverage,
        "longest_gap_s": longest,
    }
    metrics = _machine(samples, at, inside, end)
    joules = _joules(samples, at, end, len(record["gpus"]), record, reasons)
    record["energy_of"] = None
    if not reasons:
        metrics |= joules
        if not_the_system is not None:
            record["energy_left_out"] = not_the_system
        else:
            metrics |= _per_work(joules, measured, end, record)
    record |= {"valid": not reasons, "reasons": reasons}
    warnings = tuple(_warnings(samples, inside, record, metrics))
    return Summary(record, metrics, warnings)


def _coverage(at: Floats, end: float, gap: float) -> tuple[float, float]:
    """The share of the window between samples that are at most ``gap`` apart, and the longest time without one."""
    edges = np.clip(at, 0.0, end)
    lengths = np.diff(edges)
    near = np.diff(at) <= gap
    covered = float(lengths[near].sum())
    longest = max([float(edges[0]), end - float(edges[-1]), *lengths.tolist()])
    return (covered / end if end > 0 else 0.0), longest


def _column(samples: Samples, gpu: int, key: str) -> Floats:
    """A figure of one GPU, NaN where it was not read."""
    values = []
    for sample in samples:
        gpus = sample.get("gpus") or ()
        value = gpus[gpu].get(key) if gpu < len(gpus) else None
        values.append(float("nan") if value is None else float(value))
    return np.array(values, dtype=np.float64)


def integrate(at: Floats, watts: Floats, start: float, end: float) -> float:
    """Joules by the trapezoid rule from ``start`` to ``end``, interpolated at both."""
    inner = (at > start) & (at < end)
    times = np.concatenate([[start], at[inner], [end]])
    power = np.concatenate([[np.interp(start, at, watts)], watts[inner], [np.interp(end, at, watts)]])
    return float(np.trapezoid(power, times))


def _counted(at: Floats, joules: Floats, end: float) -> float | None:
    """Joules by a counter; None where it was not always read, or went back (a reloaded driver)."""
    if not np.isfinite(joules).all() or (np.diff(joules) < 0).any():
        return None
    return float(np.interp(end, at, joules) - np.interp(0.0, at, joules))


def _joules(
    samples: Samples, at: Floats, end: float, gpus: int, record: dict[str, Any], reasons: list[str]
) -> dict[str, float]:
    energy: dict[str, float] = {}
    how, total = [], 0.0
    for gpu in range(gpus):
        joules = _counted(at, _column(samples, gpu, "j"), end)
        if joules is None:
            watts = _column(samples, gpu, "w")
            known = np.isfinite(watts)
            if known.sum() < LEAST_COVERAGE * len(watts):
                reasons.append(f"GPU {gpu}'s power was read in {int(known.sum())} of {len(watts)} samples only.")
                continue
            joules = integrate(at[known], watts[known], 0.0, end)
            how.append("power")
        else:
            how.append("counter")
        total += joules
    if gpus:
        record["gpu_energy_by"] = "counter" if set(how) == {"counter"} else "trapezoid rule over power"
        energy["gpu_energy_j"] = total
    values = [sample.get("cpu_j") for sample in samples]
    if all(isinstance(value, int | float) for value in values):
        counted = _counted(at, np.array(values, dtype=np.float64), end)
        if counted is not None:
            energy["cpu_energy_j"] = counted
    return energy


def _per_work(
    joules: Mapping[str, float], measured: Mapping[str, float], end: float, record: dict[str, Any]
) -> dict[str, float]:
    """Energy for each token and sample: the GPUs' where there are any, else the CPU packages'."""
    key = "gpu_energy_j" if "gpu_energy_j" in joules else "cpu_energy_j"
    energy = joules.get(key, 0.0)
    if energy <= 0:
        return {}
    record["energy_of"] = "GPUs" if key == "gpu_energy_j" else "CPU packages"
    figures = {}
    tokens, samples = measured.get("output_tokens", 0.0), measured.get("completed", 0.0)
    if tokens:
        figures["joules_per_token"] = energy / tokens
        figures["tokens_per_second_per_watt"] = tokens / energy  # (tokens / s) / (J / s)
    if samples:
        figures["joules_per_sample"] = energy / samples
    if key == "cpu_energy_j":
        figures["cpu_power_mean_w"] = energy / end
    return figures


def _machine(samples: Samples, at: Floats, inside: NDArray[np.bool_], end: float) -> dict[str, float]:
    """Means and maxima over the window of what is no energy."""
    metrics: dict[str, float] = {}
    chosen = [sample for sample, within in zip(samples, inside, strict=True) if within]
    gpus = max((len(sample.get("gpus") or ()) for sample in chosen), default=0)
    columns = {key: np.array([_column(chosen, gpu, key) for gpu in range(gpus)]) for key in
               ("w", "busy_percent", "memory_mib", "celsius", "sm_mhz")}  # fmt: skip
    for key, metric, over_gpus, over_time in (
        ("w", "gpu_power_mean_w", np.sum, np.mean),
        ("w", "gpu_power_max_w", np.sum, np.max),
        ("busy_percent", "gpu_busy_percent_mean", np.mean, np.mean),
        ("memory_mib", "gpu_memory_max_mib", np.sum, np.max),
        ("celsius", "gpu_celsius_max", np.max, np.max),
        ("sm_mhz", "gpu_sm_mhz_mean", np.mean, np.mean),
    ):
        whole = columns[key][:, np.isfinite(columns[key]).all(axis=0)] if gpus else columns[key]
        if whole.size:
            metrics[metric] = float(over_time(over_gpus(whole, axis=0)))
    memory = [sample["rss_mib"] for sample in chosen if isinstance(sample.get("rss_mib"), int | float)]
    if memory:
        metrics["memory_max_mib"] = float(max(memory))
    busy = np.array([sample.get("cpu_s", np.nan) for sample in samples], dtype=np.float64)
    if np.isfinite(busy).all() and end > 0 and at[0] <= 0 and at[-1] >= end:
        metrics["cpu_cores_mean"] = float(np.interp(end, at, busy) - np.interp(0.0, at, busy)) / end
    return metrics


def _warnings(
    samples: Samples,
    inside: NDArray[np.bool_],
    record: dict[str, Any],
    metrics: Mapping[str, float],
) -> list[str]:
    chosen = [sample for sample, within in zip(samples, inside, strict=True) if within]
    said = []
    shares: dict[str, float] = {}
    for bit, words in THROTTLING.items():
        held = sum(any(int(gpu.get("reasons") or 0) & bit for gpu in sample.get("gpus") or ()) for sample in chosen)
        if chosen and held / len(chosen) > _THROTTLED:
            shares[words] = held / len(chosen)
    record["throttled"] = shares
    clock, top = metrics.get("gpu_sm_mhz_mean"), next((g.get("sm_max_mhz") for g in record["gpus"]), None)
    clocks = f", at {clock:,.0f} of {top:,.0f} MHz in the mean" if clock and top else ""
    said += [
        f"The GPU was slowed down by {words} in {100 * share:.0f} % of the measured time{clocks}."
        for words, share in shares.items()
    ]
    others = max((int(sample.get("others") or 0) for sample in chosen), default=0)
    record["others_on_gpu"] = others
    if others:
        who = "Another process was" if others == 1 else f"{others} other processes were"
        said.append(f"{who} on the run's GPUs while it was measured: its figures are not the system's alone.")
    return said
