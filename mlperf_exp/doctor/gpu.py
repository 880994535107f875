"""GPUs as ``nvidia-smi`` sees them, against the hardware profile."""

from __future__ import annotations

import math
import subprocess

from mlperf_exp.config import Device, Hardware
from mlperf_exp.doctor.check import Check, Status, graded
from mlperf_exp.environment import Gpu, gpus

# Reasons for which a GPU runs below its clocks (NVML's nvmlClocksEventReasons); idling and set limits are none.
_THROTTLED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
_DRIVERS = {"12": 525, "13": 580}  # CUDA's major version -> the least driver (CUDA compatibility guide)


def checks(hw: Hardware) -> list[Check]:
    """Number, kind, memory, driver and clocks of the GPUs that this process may use."""
    found = gpus()
    if hw.device is Device.cpu:
        return [Check("GPUs", Status.passed, f"{len(found)} found, {hw.name} wants none", value=len(found))]
    if len(found) < hw.gpus_per_node:
        names = ", ".join(gpu.name for gpu in found) or "none"
        remedy = "See nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, see that GPUs were asked for"
        return [Check("GPUs", Status.fail, f"{names}; {hw.name} wants {hw.gpus_per_node}", remedy, len(found))]
    used = found[: hw.gpus_per_node]
    return [_kind(hw, found), _memory(hw, used), _driver(used), _clocks(used)]


def _kind(hw: Hardware, found: list[Gpu]) -> Check:
    wanted = (hw.gpu or "").removeprefix("NVIDIA ").split()[:1]
    others = sorted({gpu.name for gpu in found if wanted and wanted[0] not in gpu.name})
    text = ", ".join(f"{sum(g.name == name for g in found)} x {name}" for name in sorted({g.name for g in found}))
    if others:
        return Check("GPUs", Status.warn, text, f"{hw.name} describes a {hw.gpu}: choose the profile of this one")
    return Check("GPUs", Status.passed, text, value=len(found))


def _memory(hw: Hardware, used: list[Gpu]) -> Check:
    least = min(gpu.memory_mib - gpu.used_mib for gpu in used) / 1024
    text = f"{least:.1f} GiB free of {hw.memory_gib:g}"
    remedy = "Other processes use the GPUs (nvidia-smi), or the profile describes another GPU"
    if math.isnan(least):
        return Check("GPU memory", Status.warn, "the driver does not tell", remedy)
    return graded("GPU memory", least, text, remedy, good=0.95 * hw.memory_gib - 0.5, bearable=0.5 * hw.memory_gib)


def _driver(used: list[Gpu]) -> Check:
    driver = used[0].driver
    try:
        import torch

        cuda = str(torch.version.cuda or "")
    except ImportError:
        cuda = ""
    least = _DRIVERS.get(cuda.split(".")[0])
    major = int(driver.split(".")[0]) if driver.split(".")[0].isdigit() else 0
    if not cuda:
        return Check("driver", Status.warn, f"{driver}; PyTorch is a CPU build", "Install the CUDA build (make demo)")
    if least is not None and major < least:
        return Check("driver", Status.fail, f"{driver}, CUDA {cuda} needs {least}", "Install a newer driver", major)
    return Check("driver", Status.passed, f"{driver} with CUDA {cuda}", value=major)


def _clocks(used: list[Gpu]) -> Check:
    rows = _query("index", "clocks.max.sm", "clocks.sm", "clocks_throttle_reasons.active", "temperature.gpu")
    wanted = {str(gpu.index) for gpu in used}
    rows = [row for row in rows if row[0] in wanted]
    if not rows:
        return Check("GPU clocks", Status.warn, "the driver does not tell", "See nvidia-smi -q -d CLOCK,PERFORMANCE")
    slow = []
    for index, _, _, reasons, temperature in rows:
        try:
            bits = int(reasons, 16)
        except ValueError:
            continue
        why = [name for bit, name in _THROTTLED.items() if bits & bit]
        slow += [f"GPU {index}: {', '.join(why)} at {temperature} °C"] if why else []
    if slow:
        return Check("GPU clocks", Status.warn, "; ".join(slow), "Look at cooling and power supply of the node")
    most = max(row[1] for row in rows)
    return Check("GPU clocks", Status.passed, f"up to {most} MHz, nothing slows them down")


def _query(*fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines()]
    return [row for row in rows if len(row) == len(fields)]
