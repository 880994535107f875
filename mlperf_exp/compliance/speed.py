"""One figure for the speed of a test, from LoadGen's detail log, larger is faster: what TEST01 and TEST04 compare."""

from __future__ import annotations

from typing import Any

# Source: compliance/TEST01/verify_performance.py and compliance/TEST04/verify_performance.py, v6.1.
_RATES = {"Offline": "result_samples_per_second", "Server": "result_completed_samples_per_sec"}
_LATENCIES_NS = {"SingleStream": "early_stopping_latency_ss", "MultiStream": "early_stopping_latency_ms"}
_SHORT_NS = {"SingleStream": 200_000, "MultiStream": 1_600_000}  # noise counts for more below these latencies
TOLERANCE, TOLERANCE_SHORT = 0.10, 0.20


def scenario(logged: dict[str, Any]) -> str:
    """LoadGen's scenario, empty where the log does not say it."""
    return str(logged.get("effective_scenario", "")).replace(" ", "")


def speed(logged: dict[str, Any]) -> float | None:
    """Samples per second, or queries per second of the early-stopping latency; None where there is no figure."""
    name = scenario(logged)
    rate, latency = logged.get(_RATES.get(name, "")), logged.get(_LATENCIES_NS.get(name, ""))
    if isinstance(rate, int | float) and rate > 0:
        return float(rate)
    return 1e9 / latency if isinstance(latency, int | float) and latency > 0 else None


def tolerance(reference: dict[str, Any]) -> float:
    """The share by which two speeds may differ."""
    name = scenario(reference)
    latency = reference.get(_LATENCIES_NS.get(name, ""))
    short = isinstance(latency, int | float) and latency <= _SHORT_NS[name]
    return TOLERANCE_SHORT if short else TOLERANCE


def comparable(reference: dict[str, Any], logged: dict[str, Any]) -> list[str]:
    """Reasons why two tests' speeds cannot be compared."""
    problems = []
    for name, log in (("the performance test", reference), ("the compliance test", logged)):
        if log.get("result_validity") != "VALID":
            problems.append(f"LoadGen calls {name} {log.get('result_validity', 'unfinished')}")
        if speed(log) is None:
            problems.append(f"{name} has no figure of speed")
    if scenario(reference) != scenario(logged):
        problems.append(f"the scenarios differ ({scenario(reference)} and {scenario(logged)})")
    bounds = [log.get("effective_target_latency_ns") for log in (reference, logged)]
    if scenario(reference) == "Server" and bounds[0] != bounds[1]:
        problems.append(f"the latency bounds differ ({bounds[0]} and {bounds[1]} ns)")
    return problems
