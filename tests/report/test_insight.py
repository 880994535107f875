"""Each rule: it speaks with its numbers where the figures carry it, and is silent where they do not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mlperf_exp import roofline
from mlperf_exp.report import expected, insight, telemetry_section

LLAMA = {"parameters": 8030261248, "layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "heads": 32,
         "kv_heads": 8, "head_dim": 128, "vocab_size": 128256}  # fmt: skip
H200 = {"name": "h200", "nodes": 1, "gpus_per_node": 1, "memory_gib": 139.8, "bandwidth_gb_s": 4800.0,
        "peak_tflops": {"bf16": 989.5, "fp8": 1979.0}}  # fmt: skip


def made(scenario: str = "server", engine: dict[str, Any] | None = None, **metrics: float) -> dict[str, Any]:
    rules = {"name": scenario, "target_qps": 30.0}
    rules |= {"ttft_ms": 2000.0, "tpot_ms": 100.0} if scenario == "server" else {}
    return {
        "plan": {"config": {"model": {"name": "llama3_8b", "dtype": "bfloat16", "architecture": LLAMA,
                                      "performance_samples": 13368},
                            "hw": copy.deepcopy(H200), "scenario": rules, "backend": {"name": "vllm"}},
                 "engine": engine or {}},
        "environment": {"cpus": 16},
        "metrics": {"prompt_tokens_mean": 785.0, "output_tokens_mean": 128.0, **metrics},
    }  # fmt: skip


def said(rule: insight.Rule, result: dict[str, Any]) -> str | None:
    return rule(insight.figures(result))


def test_the_broken_bound_and_its_cause_are_named() -> None:
    ttft = said(insight.latency_bound, made(ttft_p99_ms=3400, tpot_p99_ms=60))
    assert ttft is not None and ttft.startswith(
        "TTFT bounds the run: TTFT p99 3,400 ms of the 2,000 ms allowed (TPOT uses 60 %"
    )
    assert "max_num_batched_tokens" in ttft
    tpot = said(insight.latency_bound, made(ttft_p99_ms=400, tpot_p99_ms=135))
    assert tpot is not None and tpot.startswith(
        "TPOT bounds the run: TPOT p99 135 ms of the 100 ms allowed (TTFT uses 20 %"
    )


def test_room_below_the_bounds_asks_for_more_load() -> None:
    room = said(insight.latency_bound, made(ttft_p99_ms=218, tpot_p99_ms=25))
    assert room is not None
    assert room.startswith(
        "TPOT is the bound nearest: TPOT p99 25 ms of the 100 ms allowed, 25 % (TTFT uses 11 % of its"
    )
    assert room.endswith("there is room for more load, try scenario.target_qps above 30.")
    near = said(insight.latency_bound, made(ttft_p99_ms=1900, tpot_p99_ms=25))
    assert near is not None and "room" not in near
    assert said(insight.latency_bound, made("offline", ttft_p99_ms=9000)) is None


def test_overload() -> None:
    it = said(insight.overload, made(samples_per_second=24.0))
    assert it is not None and "24 samples/s of 30 queries/s" in it and "scenario.target_qps=21.6" in it
    assert said(insight.overload, made(samples_per_second=29.5)) is None
    assert said(insight.overload, made("offline", samples_per_second=1.0)) is None


def test_the_rooflines_sides() -> None:
    """By hand, for 785 tokens in and 128 out in bf16: 7.5e9 multiplied weights, 2 operations each a token."""
    cost = roofline.costs(made())
    assert cost is not None
    head = 128256 * 4096
    body = 8030261248 - 2 * head
    assert cost.prefill_flops == pytest.approx(2 * body * 785 + 2 * head + 4 * 32 * 32 * 128 * 785**2 / 2)
    assert cost.flops == pytest.approx(1.31e13, rel=0.03)
    assert cost.compute_rate == pytest.approx(989.5e12 / cost.flops)
    assert cost.context_bytes == pytest.approx(2 * 32 * 8 * 128 * 2 * (785 + 64))
    limits = roofline.bounds(made())
    assert limits["samples_per_second"].by == "compute"
    assert 70 < limits["samples_per_second"].value < 80
    assert limits["ttft_p50_ms"].value == pytest.approx(1e3 * cost.prefill_flops / 989.5e12)
    assert limits["tpot_p50_ms"].value == pytest.approx(1e3 * (cost.weight_bytes + cost.context_bytes) / 4.8e12)
    fp8 = roofline.bounds(made(engine={"quantization": "fp8", "kv_cache_dtype": "fp8"}))
    assert fp8["samples_per_second"].value > 1.9 * limits["samples_per_second"].value
    few = roofline.bounds(made(engine={"max_num_seqs": 1}))
    assert few["samples_per_second"].by == "bandwidth"


def test_the_roofline_of_other_models_and_machines() -> None:
    result = made()
    result["plan"]["config"]["model"] = {"name": "resnet50", "dtype": "float16", "gflops_per_sample": 8.2}
    result["plan"]["config"]["hw"]["peak_tflops"] = {"fp16": 989.5}
    limits = roofline.bounds(result)
    assert limits["samples_per_second"].value == pytest.approx(989.5e12 / 8.2e9)
    result["plan"]["config"]["model"] = {"name": "bert_large", "dtype": "float16", "layers": 24, "hidden_size": 1024,
                                         "intermediate_size": 4096}  # fmt: skip
    result["metrics"]["prompt_tokens_mean"] = 384.0
    cost = roofline.costs(result)
    assert cost is not None
    assert cost.flops == pytest.approx(2.46e11, rel=0.02), (
        "340 M weights less embeddings, twice, 384 times, and attention"
    )
    result["plan"]["config"]["hw"] = {"name": "cpu", "memory_gib": 4.0}
    assert roofline.bounds(result) == {}
    assert roofline.bounds({}) == {}


def test_how_far_the_hardware_is() -> None:
    it = said(insight.hardware, made("offline", samples_per_second=39.6))
    assert it is not None
    assert "compute sets it; measured are 39.60 samples/s, 5" in it
    assert "% of 990 bf16 TFLOP/s" in it and "% of 4,800 GB/s" in it
    simulated = made(samples_per_second=39.6)
    simulated["plan"]["config"]["backend"]["name"] = "simulated"
    assert said(insight.hardware, simulated) is None


@pytest.mark.parametrize(
    ("rule", "speaks", "words", "silent"),
    [
        (insight.seats, made(engine={"max_num_seqs": 64}, samples_per_second=20.0, latency_mean_ms=3100.0),
         "about 62 queries", made(engine={"max_num_seqs": 512}, samples_per_second=20.0, latency_mean_ms=3100.0)),
        (insight.client, made(latency_p99_ms=500.0, sent_latency_p99_ms=300.0), "left 200 ms late",
         made(latency_p99_ms=500.0, sent_latency_p99_ms=495.0)),
        (insight.processors, made(cpu_cores_mean=15.2), "15.2 of 16 cores", made(cpu_cores_mean=3.0)),
        (insight.idle_gpu, made("offline", gpu_busy_percent_mean=52.0), "busy 52 %",
         made("server", gpu_busy_percent_mean=52.0)),
        (insight.power, made(gpu_power_mean_w=690.0, gpu_sm_mhz_mean=1410.0)
         | {"telemetry": {"gpus": [{"power_limit_w": 700.0}]}}, "690 of 700 W, at 1,410 MHz",
         made(gpu_power_mean_w=400.0) | {"telemetry": {"gpus": [{"power_limit_w": 700.0}]}}),
        (insight.overhead, made() | {"phases": {"total_s": 120.0, "load_s": 20.0, "drain_s": 1.0, "start_s": 60.0}},
         "the load took 18 %", made() | {"phases": {"total_s": 700.0, "load_s": 600.0, "start_s": 60.0}}),
    ],
)  # fmt: skip
def test_rules(rule: insight.Rule, speaks: dict[str, Any], words: str, silent: dict[str, Any]) -> None:
    sentence = said(rule, speaks)
    assert sentence is not None and words in sentence
    assert sentence.endswith(".")
    assert said(rule, silent) is None
    assert said(rule, {}) is None, "nothing was measured"


def test_expected_stands_beside_measured_and_the_bound() -> None:
    result = made("offline", samples_per_second=50.0)
    result["plan"]["config"]["expected"] = {
        "rate": {"metric": "samples_per_second", "low": 106.0, "high": 106.0, "unit": "samples/s", "source": "a page"},
        "hours": {"metric": "full_dataset_hours", "low": 10.4, "high": None, "unit": "h", "source": "a page"},
    }
    rate, hours = expected.rows(result)
    assert rate[1:4] == ("106 samples/s", "50 samples/s (0.47 times the expected)", rate[3])
    assert rate[3].startswith("≤ 7")
    assert (hours[1], hours[2]) == ("at least 10.40 h", "not measured")
    assert hours[3].startswith("≥ 0.0")
    assert expected.section(made(), Path()) is None
    assert expected.section(result, Path()) is not None


def test_the_section_of_telemetry_says_what_is_missing() -> None:
    result = made(gpu_power_mean_w=650.0, joules_per_token=0.09)
    assert telemetry_section.section(result, Path()) is None
    result["telemetry"] = {"valid": True, "rate_hz": 2.0, "samples_in_window": 40, "window_s": 20.0,
                           "longest_gap_s": 0.6,
                           "energy_of": "GPUs", "gpu_energy_by": "counter", "reasons": [],
                           "unreadable": {"cpu": "root only"}}  # fmt: skip
    section = telemetry_section.section(result, Path())
    assert section is not None
    assert ("Energy per token", "0.09 J/token") in section.tables[0].rows
    assert "Energy per token and sample is that of the GPUs, by counter." in section.notes
    assert "Not readable, cpu: root only." in section.notes
