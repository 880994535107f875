"""Stands for NVIDIA's library where there is no GPU: one H100, on which process 1 computes too."""

from types import SimpleNamespace

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0


def nvmlInit() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(handle: int) -> str:
    return f"GPU-{handle}"


def nvmlDeviceGetName(handle: int) -> str:
    return f"NVIDIA H100 80GB HBM3, number {handle}"


def nvmlSystemGetDriverVersion() -> str:
    return "580.65.06"


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=1, usedGpuMemory=8 << 30, gpu=handle)]
