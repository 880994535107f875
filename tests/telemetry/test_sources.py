"""NVML by a module of its shape (no GPU is needed for the faults), and the kernel's energy counters by a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlperf_exp.telemetry.__main__ import Sources
from mlperf_exp.telemetry.nvml import Nvml, throttling, visible
from mlperf_exp.telemetry.rapl import Rapl


class Unsupported(Exception):
    """As NVMLError_NotSupported."""


def library(gpus: int = 2, **changes: Any) -> Any:
    """What of pynvml is used, answering as an H100 does."""

    def unsupported(*_: object) -> None:
        raise Unsupported("Not Supported")

    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: gpus,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetUUID": lambda h: f"GPU-{h}abc",
        "nvmlDeviceGetName": lambda h: b"NVIDIA H100 80GB HBM3",  # bytes in old versions
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlDeviceGetEnforcedPowerLimit": lambda h: 700_000,
        "nvmlDeviceGetMaxClockInfo": lambda h, kind: 1980,
        "nvmlDeviceGetClockInfo": lambda h, kind: {1: 1755, 2: 2619}[kind],
        "nvmlDeviceGetPowerUsage": lambda h: 650_500 + h,
        "nvmlDeviceGetTotalEnergyConsumption": lambda h: 123_456_789,
        "nvmlDeviceGetTemperature": lambda h, kind: 61,
        "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(total=81559 * 2**20, used=70000 * 2**20),
        "nvmlDeviceGetUtilizationRates": lambda h: SimpleNamespace(gpu=97, memory=60),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda h: 0x4 | 0x1,
        "nvmlDeviceGetComputeRunningProcesses": lambda h: [],
        "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
    }  # fmt: skip
    for name, value in changes.items():
        answers[name] = unsupported if value is Unsupported else value
    return SimpleNamespace(**{name: value for name, value in answers.items() if value is not None})


def test_figures_have_their_units() -> None:
    nvml, problem = Nvml.open(1, library())
    assert problem is None
    assert nvml is not None
    assert nvml.describe() == [{
        "name": "NVIDIA H100 80GB HBM3", "uuid": "GPU-0abc", "driver": "580.65.06", "power_limit_w": 700.0,
        "sm_max_mhz": 1980, "memory_mib": 81559.0,
    }]  # fmt: skip
    assert nvml.sample() == [{
        "w": 650.5, "j": 123456.789, "sm_mhz": 1755, "memory_mhz": 2619, "celsius": 61, "memory_mib": 70000.0,
        "busy_percent": 97, "reasons": 5,
    }]  # fmt: skip


def test_what_a_gpu_does_not_give_is_none() -> None:
    nvml, _ = Nvml.open(
        None,
        library(
            nvmlDeviceGetTotalEnergyConsumption=Unsupported, nvmlDeviceGetMemoryInfo=Unsupported,
            nvmlDeviceGetUtilizationRates=Unsupported, nvmlDeviceGetCurrentClocksEventReasons=None,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda h: 0x40,
        ),
    )  # fmt: skip
    assert nvml is not None
    looks = nvml.sample()
    assert len(looks) == 2
    assert (looks[0]["j"], looks[0]["memory_mib"], looks[0]["busy_percent"]) == (None, None, None)
    assert looks[0]["reasons"] == 0x40, "the name before NVML 12"
    assert looks[1]["w"] == 650.501


@pytest.mark.parametrize(
    ("count", "changes", "why"),
    [
        (0, {}, "the run uses no GPU"),
        (1, {"nvmlInit": Unsupported}, "NVML: Not Supported"),
        (1, {"nvmlDeviceGetCount": lambda: 0}, "NVML sees no GPU that this process may use"),
    ],
)
def test_without_gpus_it_says_why(count: int, changes: dict[str, Any], why: str) -> None:
    assert Nvml.open(count, library(**changes)) == (None, why)


def test_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = ["GPU-0abc", "GPU-1abd", "GPU-2xyz"]
    assert visible(uuids, None) == [0, 1, 2]
    assert visible(uuids, "2,0") == [2, 0]
    assert visible(uuids, "GPU-1, 0") == [1, 0]
    assert visible(uuids, "") == []
    assert visible(uuids, "1,7,0") == [1], "as CUDA: nothing after an entry that does not exist"
    assert visible(uuids, "GPU-") == [], "the beginning of several"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    nvml, _ = Nvml.open(None, library())
    assert nvml is not None
    assert [gpu["uuid"] for gpu in nvml.describe()] == ["GPU-1abc"]


def test_throttling_in_words() -> None:
    assert throttling(0x1 | 0x2) == [], "idle, and clocks that somebody set, are no throttling"
    assert throttling(0x4 | 0x40) == ["its power limit", "its temperature (hardware)"]


def test_strangers_on_the_gpu_are_told_only_where_numbers_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[int] = []
    fake = library(1, nvmlDeviceGetComputeRunningProcesses=lambda h: [SimpleNamespace(pid=pid) for pid in users])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    users[:] = [os.getpid(), 4242]
    assert Sources(os.getpid(), 1, set()).sample()["others"] == 1
    users[:] = [os.getpid()]
    assert Sources(os.getpid(), 1, set()).sample()["others"] == 0
    users[:] = [987654]  # in a container NVML knows our process by the host's number
    assert Sources(os.getpid(), 1, set()).sample()["others"] == 0


def counter(root: Path, name: str, microjoules: int, folder: str = "intel-rapl:0") -> Path:
    package = root / folder
    package.mkdir(exist_ok=True)
    (package / "name").write_text(f"{name}\n")
    (package / "max_energy_range_uj").write_text("1000000\n")
    (package / "energy_uj").write_text(f"{microjoules}\n")
    return package


def test_packages_are_added_up_and_a_counter_that_wraps_is_followed(tmp_path: Path) -> None:
    counter(tmp_path, "package-0", 900_000)
    counter(tmp_path, "package-1", 100_000, "intel-rapl:1")
    counter(tmp_path, "core", 5, "intel-rapl:0:0")  # a part of its package, and must not count twice
    rapl, problem = Rapl.open(tmp_path)
    assert problem is None
    assert rapl is not None
    counter(tmp_path, "package-0", 200_000)  # 0.3 J, over the end of the range
    counter(tmp_path, "package-1", 150_000, "intel-rapl:1")
    assert rapl.joules() == pytest.approx(0.35)
    assert rapl.joules() == pytest.approx(0.35)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert rapl.joules() is None


def test_counters_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rapl.open(tmp_path / "none")[1] == f"this machine shows no CPU energy counter in {tmp_path / 'none'}"
    package = counter(tmp_path, "package-0", 1)

    def refused(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path / "energy_uj"))

    monkeypatch.setattr(Rapl, "_read", staticmethod(refused))
    assert Rapl.open(tmp_path)[1] == f"{package / 'energy_uj'} may be read by root only"
