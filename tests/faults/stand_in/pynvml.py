"""Stands for NVIDIA's library where there is no GPU: one H100, on which process 1 computes beside the run."""

import os
from types import SimpleNamespace

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
_ANSWERS = {
    "nvmlInit": None,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": 0,
    "nvmlDeviceGetUUID": "GPU-0",
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlSystemGetDriverVersion": "580.65.06",
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetClockInfo": 1755,
    "nvmlDeviceGetPowerUsage": 650_000,
    "nvmlDeviceGetTotalEnergyConsumption": 123_456_789,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=81559 << 20, used=70000 << 20),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=60),
    "nvmlDeviceGetCurrentClocksEventReasons": 0,
    # Process 1, and the run that the sampler belongs to.
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1), SimpleNamespace(pid=os.getppid())],
}


def __getattr__(name: str) -> object:
    if name not in _ANSWERS:
        raise AttributeError(name)
    return lambda *_: _ANSWERS[name]
