"""Joules over the measured window only, by counter or by power, and not at all where the samples do not carry them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp.telemetry import energy

WORK = {"output_tokens": 1000.0, "completed": 10.0}
HEADER = {"interval_s": 0.5, "gpus": [{"name": "a gpu", "sm_max_mhz": 1980}], "unreadable": {"cpu": "root only"}}


def trace(watts: Callable[[float], float], seconds: float = 40.0, **more: Any) -> list[dict[str, Any]]:
    """A sample each half second of a GPU whose power is ``watts(t)``, with its counter."""
    samples, total = [], 5000.0
    for i in range(int(seconds * 2) + 1):
        t = i / 2
        gpu = {"w": watts(t), "j": total, "sm_mhz": 1000, "celsius": 60, "memory_mib": 100.0, "busy_percent": 90}
        samples.append({"ns": int(t * 1e9), "gpus": [gpu | more], "rss_mib": 50.0 + t, "cpu_s": 2 * t, "others": 0})
        total += float(np.mean([watts(t + x) for x in np.linspace(0, 0.5, 50)])) * 0.5
    return samples


def window(start: float, end: float) -> tuple[int, int]:
    return int(start * 1e9), int(end * 1e9)


def test_only_the_window_counts() -> None:
    """100 W before and after, 500 W in the window from 10.25 s to 30.25 s, between two samples."""
    samples = trace(lambda t: 500.0 if 10.25 <= t < 30.25 else 100.0)
    summary = energy.summarize(HEADER, samples, window(10.25, 30.25), WORK)
    assert summary.record["valid"], summary.record
    assert summary.record["gpu_energy_by"] == "counter"
    assert summary.metrics["gpu_energy_j"] == pytest.approx(20 * 500, rel=0.02)
    assert summary.metrics["joules_per_token"] == pytest.approx(summary.metrics["gpu_energy_j"] / 1000)
    assert summary.metrics["joules_per_sample"] == pytest.approx(summary.metrics["gpu_energy_j"] / 10)
    assert summary.metrics["tokens_per_second_per_watt"] == pytest.approx(1000 / summary.metrics["gpu_energy_j"])
    assert summary.metrics["cpu_cores_mean"] == pytest.approx(2.0)
    assert summary.metrics["memory_max_mib"] == 80.0
    assert summary.metrics["gpu_power_mean_w"] == 500
    assert summary.record["unreadable"] == {"cpu": "root only"}
    assert summary.warnings == ()


def test_without_a_counter_power_is_integrated() -> None:
    summary = energy.summarize(HEADER, trace(lambda t: 10.0 * t, j=None), window(10.1, 30.3), WORK)
    assert summary.record["gpu_energy_by"] == "trapezoid rule over power"
    assert summary.metrics["gpu_energy_j"] == pytest.approx(5 * (30.3**2 - 10.1**2), rel=1e-9)  # exact on a line


def test_a_counter_that_went_back_is_not_believed() -> None:
    samples = trace(lambda t: 200.0)
    for sample in samples[40:]:
        sample["gpus"][0]["j"] -= 4000  # the driver was loaded again
    summary = energy.summarize(HEADER, samples, window(10, 30), WORK)
    assert summary.record["gpu_energy_by"] == "trapezoid rule over power"
    assert summary.metrics["gpu_energy_j"] == pytest.approx(4000)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1000)), min_size=2, max_size=30), st.data())
def test_the_integral_adds_up_between_its_bounds(steps: list[tuple[float, float]], data: st.DataObject) -> None:
    at = np.cumsum([step for step, _ in steps])
    watts = np.array([power for _, power in steps])
    cut = data.draw(st.floats(float(at[0]), float(at[-1])))
    whole = energy.integrate(at, watts, float(at[0]), float(at[-1]))
    parts = energy.integrate(at, watts, float(at[0]), cut) + energy.integrate(at, watts, cut, float(at[-1]))
    assert parts == pytest.approx(whole, abs=1e-6)
    assert watts.min() * (at[-1] - at[0]) - 1e-6 <= whole <= watts.max() * (at[-1] - at[0]) + 1e-6


@pytest.mark.parametrize(
    ("keep", "why"),
    [
        (lambda t: not 15 < t < 20, "Samples cover 75.0 % of the measured 20.0 s"),
        (lambda t: t < 15, "Samples cover 22.5 %"),  # the sampler died
        (lambda t: t > 24, "Samples cover 27.5 %"),  # it came late
        (lambda t: t in (9.5, 11, 13, 15), "too few"),
    ],
)
def test_energy_needs_samples_all_over_the_window(keep: Callable[[float], bool], why: str) -> None:
    samples = [sample for sample in trace(lambda t: 200.0) if keep(sample["ns"] / 1e9)]
    end = 14.5 if why == "too few" else 30
    summary = energy.summarize(HEADER, samples, window(10, end), WORK)
    assert summary.record["valid"] is False
    assert any(why in reason for reason in summary.record["reasons"]), summary.record["reasons"]
    assert not any("joules" in name or name.endswith("_j") for name in summary.metrics)


def test_power_that_was_often_not_read_gives_no_energy() -> None:
    samples = trace(lambda t: 200.0, j=None)
    for sample in samples[:30]:
        sample["gpus"][0]["w"] = None  # the GPU fell off the bus, or NVML does not support it
    summary = energy.summarize(HEADER, samples, window(2, 38), WORK)
    assert summary.record["reasons"] == ["GPU 0's power was read in 51 of 81 samples only."]
    assert "joules_per_token" not in summary.metrics
    assert summary.metrics["gpu_power_mean_w"] == 200, "what was read is shown"


def test_throttling_and_strangers_are_warnings() -> None:
    samples = trace(lambda t: 700.0)
    for sample in samples[30:50]:
        sample["gpus"][0]["reasons"] = 0x4 | 0x40
        sample["others"] = 2
    summary = energy.summarize(HEADER, samples, window(10, 30), WORK)
    assert summary.warnings == (
        "The GPU was slowed down by its power limit in 49 % of the measured time, at 1,000 of 1,980 MHz in the mean.",
        summary.warnings[0].replace("power limit", "temperature (hardware)"),
        "2 other processes were on the run's GPUs while it was measured: its figures are not the system's alone.",
    )
    before = energy.summarize(HEADER, samples, window(26, 38), WORK)
    assert before.warnings == (), "what happens outside of the window is none of its business"


def test_energy_of_a_client_is_not_the_systems() -> None:
    summary = energy.summarize(HEADER, trace(lambda t: 100.0), window(10, 30), WORK, "the servers run elsewhere")
    assert summary.record["energy_left_out"] == "the servers run elsewhere"
    assert summary.metrics["gpu_energy_j"] == pytest.approx(2000)
    assert "joules_per_token" not in summary.metrics


def test_cpu_packages_count_where_there_is_no_gpu() -> None:
    samples = [{"ns": int(i * 5e8), "cpu_j": 30.0 * i, "rss_mib": 1.0, "cpu_s": 0.0} for i in range(81)]
    summary = energy.summarize({"interval_s": 0.5, "gpus": []}, samples, window(10, 30), WORK)
    assert summary.record["energy_of"] == "CPU packages"
    assert summary.metrics["joules_per_sample"] == pytest.approx(120)
    assert summary.metrics["cpu_power_mean_w"] == pytest.approx(60)


def test_nothing_measured_or_sampled_is_said() -> None:
    assert energy.summarize({}, [], window(0, 1), {}).record["reasons"] == ["Nothing was sampled."]
    nothing = energy.summarize(HEADER, trace(lambda t: 1.0), None, {})
    assert nothing.record["reasons"] == ["No performance test was measured."]
    assert nothing.metrics == {}


def test_a_file_cut_off_in_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"interval_s": 0.5}\n{"ns": 1}\n[]\nxx\n{"ns": 2}\n{"ns"')
    assert energy.read(path) == ({"interval_s": 0.5}, [{"ns": 1}, {"ns": 2}])
    assert energy.read(tmp_path / "none") == ({}, [])
