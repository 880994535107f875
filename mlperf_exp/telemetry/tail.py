"""The last sample of a ``telemetry.jsonl`` that is still being written: a few hundred bytes of it are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlperf_exp.telemetry.nvml import power_w

_TAIL_BYTES = 16384  # more than two lines of a machine with 16 GPUs


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line that is a JSON object; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):  # what follows the last line break is not yet whole
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def machine(path: Path) -> dict[str, float]:
    """What a live view shows of the machine now: W and MiB and percent of all the run's GPUs, MiB of its processes."""
    sample = last_line(path)
    gpus = [gpu for gpu in sample.get("gpus") or () if isinstance(gpu, dict)] if "ns" in sample else []
    memory = [gpu["memory_mib"] for gpu in gpus if gpu.get("memory_mib") is not None]
    busy = [gpu["busy_percent"] for gpu in gpus if gpu.get("busy_percent") is not None]
    shown = {
        "power_w": power_w(sample) if gpus else None,
        "gpu_memory_mib": sum(memory) if memory else None,
        "gpu_busy_percent": sum(busy) / len(busy) if busy else None,
        "memory_mib": sample.get("rss_mib"),
    }
    return {key: float(value) for key, value in shown.items() if value is not None}
