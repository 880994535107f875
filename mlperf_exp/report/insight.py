"""A few sentences drawn from a run's figures: what bounds it, how far the hardware is, what to try next.

Each rule is a function of the figures that gives a sentence with its numbers, or None where they do not carry one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp import roofline
from mlperf_exp.report.section import Section
from mlperf_exp.report.text import duration, figure, number
from mlperf_exp.report.view import part


@dataclass(frozen=True, slots=True)
class Figures:
    """What the rules read. ``bounds`` are the scenario's, in ms, by ttft and tpot."""

    metrics: Mapping[str, Any]
    phases: Mapping[str, Any]
    telemetry: Mapping[str, Any]
    engine: Mapping[str, Any]
    scenario: str
    bounds: Mapping[str, float]
    target_qps: float | None
    cpus: float | None
    simulated: bool
    costs: roofline.Costs | None

    def get(self, name: str) -> float | None:
        """A metric; None where it was not measured."""
        return number(self.metrics.get(name))


def figures(result: Mapping[str, Any]) -> Figures:
    """The rules' input of a result, any part of which may be missing."""
    config = part(result, "plan", "config")
    rules = part(config, "scenario")
    known = {key: number(rules.get(f"{key}_ms")) for key in ("ttft", "tpot")}
    return Figures(
        metrics=part(result, "metrics"),
        phases=part(result, "phases"),
        telemetry=part(result, "telemetry"),
        engine=part(result, "plan", "engine"),
        scenario=str(rules.get("name") or ""),
        bounds={key: value for key, value in known.items() if value},
        target_qps=number(rules.get("target_qps")),
        cpus=number(part(result, "environment").get("cpus")),
        simulated=part(config, "backend").get("name") == "simulated",
        costs=roofline.costs(result),
    )


def latency_bound(it: Figures) -> str | None:
    """Which latency bound is broken, and by which kind of work; or how much room the tightest leaves."""
    use = {k: (v, b, v / b) for k, b in it.bounds.items() if (v := it.get(f"{k}_p99_ms")) is not None}
    if not use or it.scenario not in ("server", "interactive"):
        return None
    name, (value, bound, share) = max(use.items(), key=lambda item: item[1][2])
    label, other = name.upper(), "tpot" if name == "ttft" else "ttft"
    beside = f" ({other.upper()} uses {100 * use[other][2]:.0f} % of its own)" if other in use else ""
    shown = f"{label} p99 {figure(value, 'ms')} of the {figure(bound, 'ms')} allowed"
    if share <= 1:
        more = ""
        if it.target_qps is not None and share < 0.7:
            more = f": there is room for more load, try scenario.target_qps above {it.target_qps:g}"
        return f"{label} is the bound nearest: {shown}, {100 * share:.0f} %{beside}{more}."
    cause = {
        "ttft": "queries wait for their prompt to be computed: lower scenario.target_qps, or give prefill more of each "
        "step (backend.engine.max_num_batched_tokens)",
        "tpot": "each decoding step takes too long: lower scenario.target_qps or backend.engine.max_num_seqs, or give "
        "prefill less of each step (backend.engine.max_num_batched_tokens)",
    }[name]
    return f"{label} bounds the run: {shown}{beside}; {cause}."


def overload(it: Figures) -> str | None:
    """The system answers fewer queries than come."""
    rate = it.get("samples_per_second")
    if it.scenario not in ("server", "interactive") or it.target_qps is None or rate is None:
        return None
    if rate >= 0.95 * it.target_qps:
        return None
    return (
        f"The system cannot keep up: {figure(rate, 'samples/s')} of {it.target_qps:g} queries/s asked for; its queue "
        f"grows as long as the test lasts, so that latencies say little. Try scenario.target_qps={0.9 * rate:.3g}."
    )


def hardware(it: Figures) -> str | None:
    """How far from the roofline, and which of its sides is the nearer one."""
    cost, rate = it.costs, it.get("samples_per_second")
    if it.simulated or cost is None or rate is None:
        return None
    sides = [(limit, by) for limit, by in ((cost.compute_rate, "compute"), (cost.bandwidth_rate, "bandwidth")) if limit]
    if not sides:
        return None
    limit, by = min(sides)
    peaks = []
    if cost.flops_per_s and cost.compute_rate:
        peaks.append(f"{100 * rate / cost.compute_rate:.1f} % of {cost.flops_per_s / 1e12:,.0f} {cost.kind} TFLOP/s")
    if cost.bytes_per_s and cost.bandwidth_rate:
        peaks.append(f"{100 * rate / cost.bandwidth_rate:.1f} % of {cost.bytes_per_s / 1e9:,.0f} GB/s")
    batch = f" at {cost.batch:,.0f} sequences at once" if cost.decode_steps else ""
    return (
        f"The hardware's roofline allows {figure(limit, 'samples/s')}{batch}, and {by} sets it; measured are "
        f"{figure(rate, 'samples/s')}, {100 * rate / limit:.0f} % of it ({', '.join(peaks)})."
    )


def seats(it: Figures) -> str | None:
    """All sequences that the engine may hold are in use."""
    most, rate, latency = number(it.engine.get("max_num_seqs")), it.get("samples_per_second"), it.get("latency_mean_ms")
    if not most or rate is None or latency is None or it.scenario == "offline":
        return None
    inside = rate * latency / 1000  # Little's law
    if inside < 0.9 * most:
        return None
    return (
        f"The engine is full: about {inside:,.0f} queries are in it at a time (rate times mean latency) and "
        f"max_num_seqs is {most:,.0f}. More need memory: fp8 weights or cache, or more accelerators."
    )


def client(it: Figures) -> str | None:
    """Queries leave late: the client, not the system, sets the latency."""
    scheduled, sent = it.get("latency_p99_ms"), it.get("sent_latency_p99_ms")
    if it.scenario not in ("server", "interactive") or scheduled is None or sent is None or scheduled <= 0:
        return None
    late = scheduled - sent
    if late < 0.1 * scheduled or late < 1:
        return None
    return (
        f"The client is part of the latency: p99 is {figure(scheduled, 'ms')} from the schedule and "
        f"{figure(sent, 'ms')} from sending, so that queries left {figure(late, 'ms')} late. Free its processors, or "
        "use a faster host."
    )


def processors(it: Figures) -> str | None:
    """All CPU cores of the host are busy."""
    busy = it.get("cpu_cores_mean")
    if busy is None or not it.cpus or busy < 0.85 * it.cpus:
        return None
    cores = f"{busy:.1f} of {it.cpus:.0f} cores"
    return f"The host's processors bound the run: {cores} were busy in the mean with the run alone."


def idle_gpu(it: Figures) -> str | None:
    """The GPU waits in a scenario that should fill it."""
    busy = it.get("gpu_busy_percent_mean")
    if busy is None or busy >= 80 or it.scenario != "offline":
        return None
    return f"The GPU was busy {busy:.0f} % of the time while all queries were there: it waits for the host."


def power(it: Figures) -> str | None:
    """The power limit sets the clock."""
    watts = it.get("gpu_power_mean_w")
    limits = [number(part({"g": gpu}, "g").get("power_limit_w")) for gpu in it.telemetry.get("gpus") or ()]
    limit = sum(x for x in limits if x)
    if watts is None or not limit or watts < 0.95 * limit:
        return None
    clock = it.get("gpu_sm_mhz_mean")
    at = f", at {clock:,.0f} MHz in the mean" if clock else ""
    return f"Power bounds the run: {watts:,.0f} of {limit:,.0f} W{at}; a lower precision does more with each joule."


def overhead(it: Figures) -> str | None:
    """Most of the wall time was not the measurement."""
    total, load = number(it.phases.get("total_s")), number(it.phases.get("load_s"))
    if not total or load is None:
        return None
    load += number(it.phases.get("drain_s")) or 0.0
    start = (number(it.phases.get("start_s")) or 0.0) + (number(it.phases.get("warmup_s")) or 0.0)
    if load >= 0.5 * total or start < 0.2 * total:
        return None
    return (
        f"Of {duration(total)} the load took {100 * load / total:.0f} % and the start of the system {duration(start)}: "
        "several loads in one sweep share one start."
    )


Rule = Callable[[Figures], str | None]
RULES: tuple[Rule, ...] = (overload, latency_bound, client, hardware, seats, power, processors, idle_gpu, overhead)


def sentences(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What the figures of a run say, by the rules in their order."""
    it = figures(result)
    return tuple(said for rule in RULES if (said := rule(it)) is not None)


def section(result: Mapping[str, Any], _: Path) -> Section | None:
    """The section; None where no rule has anything to say."""
    found = sentences(result)
    return Section("insight", "What the figures say", bullets=found) if found else None
