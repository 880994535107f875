"""Power, energy and the machine while the performance test ran, and why what is missing is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.report.section import Section, Table
from mlperf_exp.report.text import figure, number, plain
from mlperf_exp.report.view import items, part

_ROWS = (
    ("joules_per_token", "Energy per token", "J/token"),
    ("joules_per_sample", "Energy per sample", "J/sample"),
    ("tokens_per_second_per_watt", "Tokens/s per watt", "tokens/s/W"),
    ("gpu_energy_j", "Energy of the GPUs", "J"),
    ("cpu_energy_j", "Energy of the CPU packages", "J"),
    ("gpu_power_mean_w", "Power of the GPUs, mean", "W"),
    ("gpu_power_max_w", "Power of the GPUs, highest", "W"),
    ("gpu_busy_percent_mean", "GPUs busy, mean", "%"),
    ("gpu_sm_mhz_mean", "GPU clock, mean", "MHz"),
    ("gpu_celsius_max", "GPU temperature, highest", "°C"),
    ("gpu_memory_max_mib", "GPU memory, most", "MiB"),
    ("memory_max_mib", "Memory of the run's processes, most", "MiB"),
    ("cpu_cores_mean", "CPU cores busy with the run, mean", "cores"),
)


def section(result: Mapping[str, Any], _: Path) -> Section | None:
    """The section; None where telemetry was off, or is older than the result."""
    record, metrics = part(result, "telemetry"), part(result, "metrics")
    if not record:
        return None
    rows = tuple(
        (name, figure(metrics[key], unit)) for key, name, unit in _ROWS if number(metrics.get(key)) is not None
    )
    said = []
    if record.get("valid") is True:
        rate, count = number(record.get("rate_hz")), number(record.get("samples_in_window"))
        window = figure(record.get("window_s"), "s")
        said.append(
            f"{figure(count)} samples in the measured {window} ({figure(rate, 'a second')}), the longest gap "
            f"{figure(record.get('longest_gap_s'), 's')}."
        )
        if record.get("energy_of"):
            how = f", by {record['gpu_energy_by']}" if record.get("gpu_energy_by") else ""
            said.append(f"Energy per token and sample is that of the {plain(record['energy_of'], 40)}{how}.")
    if record.get("energy_left_out"):
        said.append(f"Energy per token is left out: {plain(record['energy_left_out'], 300)}.")
    said += [plain(reason, 500) for reason in items(record.get("reasons"))]
    said += [f"Not readable, {what}: {plain(why, 300)}." for what, why in part(record, "unreadable").items()]
    tables = (Table(("Figure", "While the performance test ran"), rows, right=(1,)),) if rows else ()
    return Section("telemetry", "Power and memory", tables=tables, notes=tuple(said))
