"""What the machine is found to be, with ``nvidia-smi`` of all tempers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from mlperf_exp import environment

TWO = "0, NVIDIA A30, 24576, 3, 550.54\n1, NVIDIA H100 80GB HBM3, [N/A], 0, 550.54\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, first on the path; write its answer and status to it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia-smi"


def says(smi: Path, text: str, status: int = 0) -> None:
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
    smi.chmod(0o755)


def test_gpus_as_the_driver_reports_them(smi: Path) -> None:
    says(smi, TWO)
    first, second = environment.gpus()
    assert (first.index, first.name, first.memory_mib, first.used_mib, first.driver) == (
        0,
        "NVIDIA A30",
        24576,
        3,
        "550.54",
    )
    assert second.name == "NVIDIA H100 80GB HBM3" and math.isnan(second.memory_mib)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("No devices were found\n", 0),
        ("No devices were found\n", 6),
        ("NVIDIA-SMI has failed, because, a, b, c\n", 0),
        ("", 9),
    ],
)
def test_a_driver_without_gpus_has_none(smi: Path, answer: str, status: int) -> None:
    says(smi, answer, status)
    assert environment.gpus() == []


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("", []), ("-1", []), ("1", [1]), ("1,0", [1, 0]), ("0,-1,1", [0]), ("7", []), (" 0 , 1 ", [0, 1]),
     ("GPU-8932f937", [0, 1])],
)  # fmt: skip
def test_cuda_visible_devices(smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str, seen: list[int]) -> None:
    says(smi, TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in environment.gpus()] == seen


def test_the_description_is_json_and_names_what_a_figure_depends_on() -> None:
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert {"mlcommons-loadgen", "hydra-core", "torch", "mlflow"} <= set(found["packages"])
    assert found["cpus"] >= 1 and found["memory_gib"] > 0.5
    assert found["cpu"] and found["hostname"] and found["python"].startswith("3.")
