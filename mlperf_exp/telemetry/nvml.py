"""NVIDIA GPUs through NVML; the only import of pynvml. A figure that a GPU does not give is None, never an error."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

# Why a GPU runs below its clocks; bits of NVML's nvmlClocksEventReasons. Idle and user-set clocks are no throttling.
THROTTLING = {
    0x04: "its power limit",
    0x08: "a hardware slowdown",
    0x20: "its temperature (driver)",
    0x40: "its temperature (hardware)",
    0x80: "the server's power brake",
}


class Nvml:
    """The GPUs that are sampled, in CUDA's order; made by ``open``."""

    def __init__(self, library: ModuleType | Any, handles: list[Any]) -> None:
        self._library, self._handles = library, handles

    @classmethod
    def open(cls, count: int | None = None, library: Any = None) -> tuple[Nvml | None, str | None]:
        """The first ``count`` GPUs that CUDA_VISIBLE_DEVICES lets this process use, all where None.

        Returns them, or None and the reason in one line.
        """
        if count == 0:
            return None, "the run uses no GPU"
        try:
            library = library or importlib.import_module("pynvml")
        except ImportError:
            return None, 'the package nvidia-ml-py is not installed (pip install "mlperf-exp[cuda]")'
        try:
            library.nvmlInit()
            handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
            uuids = [_text(library.nvmlDeviceGetUUID(handle)) for handle in handles]
        except Exception as error:  # NVML's own errors, and a library of another version than the driver
            return None, f"NVML: {error}"
        chosen = visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))[:count]
        if not chosen:
            return None, "NVML sees no GPU that this process may use"
        return cls(library, [handles[i] for i in chosen]), None

    def describe(self) -> list[dict[str, Any]]:
        """What does not change: name, UUID, power limit (W), highest clock (MHz), driver."""
        lib = self._library
        driver = _value(lib.nvmlSystemGetDriverVersion)
        return [
            {
                "name": _value(lib.nvmlDeviceGetName, handle),
                "uuid": _value(lib.nvmlDeviceGetUUID, handle),
                "driver": driver,
                "power_limit_w": _scaled(_value(lib.nvmlDeviceGetEnforcedPowerLimit, handle), 1e-3),
                "sm_max_mhz": _value(lib.nvmlDeviceGetMaxClockInfo, handle, lib.NVML_CLOCK_SM),
                "memory_mib": _scaled(getattr(_value(lib.nvmlDeviceGetMemoryInfo, handle), "total", None), 2**-20),
            }
            for handle in self._handles
        ]

    def sample(self) -> list[dict[str, float | None]]:
        """One look at each GPU: W, J (since the driver was loaded), MHz, degrees C, MiB, percent, reasons' bits."""
        return [self._look(handle) for handle in self._handles]

    def _look(self, handle: Any) -> dict[str, float | None]:
        lib = self._library
        memory = _value(lib.nvmlDeviceGetMemoryInfo, handle)
        use = _value(lib.nvmlDeviceGetUtilizationRates, handle)
        # Named "throttle reasons" before NVML 12.
        reasons = getattr(lib, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(
            lib, "nvmlDeviceGetCurrentClocksThrottleReasons", None
        )
        return {
            "w": _scaled(_value(lib.nvmlDeviceGetPowerUsage, handle), 1e-3),
            "j": _scaled(_value(lib.nvmlDeviceGetTotalEnergyConsumption, handle), 1e-3),
            "sm_mhz": _value(lib.nvmlDeviceGetClockInfo, handle, lib.NVML_CLOCK_SM),
            "memory_mhz": _value(lib.nvmlDeviceGetClockInfo, handle, lib.NVML_CLOCK_MEM),
            "celsius": _value(lib.nvmlDeviceGetTemperature, handle, lib.NVML_TEMPERATURE_GPU),
            "memory_mib": _scaled(getattr(memory, "used", None), 2**-20),
            "busy_percent": getattr(use, "gpu", None),
            "reasons": None if reasons is None else _value(reasons, handle),
        }

    def processes(self) -> set[int]:
        """The processes that compute on these GPUs, as NVML knows them: the host's numbers inside a container."""
        found: set[int] = set()
        for handle in self._handles:
            listed = _value(self._library.nvmlDeviceGetComputeRunningProcesses, handle)
            found |= {process.pid for process in listed or ()}
        return found


def visible(uuids: list[str], chosen: str | None) -> list[int]:
    """The devices that ``CUDA_VISIBLE_DEVICES`` names (numbers, or beginnings of UUIDs), in its order; None: all.

    CUDA stops at the first entry that it does not know, and so does this.
    """
    if chosen is None:
        return list(range(len(uuids)))
    found = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.isdigit() and int(word) < len(uuids):
            found.append(int(word))
            continue
        match = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        if len(match) != 1:
            break
        found.append(match[0])
    return found


def throttling(reasons: float) -> list[str]:
    """What slows a GPU down, in words."""
    return [words for bit, words in THROTTLING.items() if int(reasons) & bit]


def _value(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        value = read(*arguments)
    except Exception:  # not supported by this GPU, or the GPU is lost: None says so
        return None
    return _text(value) if isinstance(value, bytes) else value


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 3)


def power_w(sample: Mapping[str, Any]) -> float | None:
    """All GPUs' power in one line of ``telemetry.jsonl``; None where none was read."""
    known = [gpu["w"] for gpu in sample.get("gpus") or () if gpu.get("w") is not None]
    return sum(known) if known else None
