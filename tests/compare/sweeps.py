"""Sweeps made from one real result: figures as an engine with a knee would give, with noise; the rest is real."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

H100 = {"name": "h100", "device": "cuda", "gpu": "NVIDIA H100 80GB", "nodes": 1, "gpus_per_node": 1, "memory_gib": 79.6,
        "bandwidth_gb_s": 3350.0, "peak_tflops": {"bf16": 989.5, "fp8": 1979.0}, "power_w": 700.0}  # fmt: skip


def variant(
    real: Mapping[str, Any],
    *,
    qps: float = 20.0,
    seqs: int = 256,
    gpus: int = 1,
    seed: int = 0,
    noise: float = 0.01,
    factor: float = 1.0,
    energy: bool = True,
    vllm: str = "0.24.0",
) -> dict[str, Any]:
    """A result of a system that takes ``9 * gpus * sqrt(seqs / 64)`` queries/s at most, at a load of ``qps``."""
    draw = np.random.default_rng(seed)

    def noisy(value: float) -> float:
        return float(value * math.exp(noise * draw.standard_normal()))

    result = copy.deepcopy(dict(real))
    capacity = 9.0 * gpus**0.95 * math.sqrt(seqs / 64) * factor
    load = qps / capacity
    done = noisy(min(qps, capacity))
    wait = 1 / (1 - load) if load < 0.97 else 30 + 40 * (load - 0.97)
    ttft, tpot = noisy(60 + 25 * wait), noisy(12 + 0.05 * seqs * min(load, 1.3))
    watts = 250 + 420 * min(load, 1.0)
    result["run"] |= {"id": f"made-{qps:g}-{seqs}-{gpus}-{seed}", "name": f"made {seed}"}
    config = result["plan"]["config"]
    config["hw"] |= {**H100, "gpus_per_node": gpus, "name": "h100" if gpus == 1 else f"{gpus}xh100"}
    config["scenario"] |= {"target_qps": qps, "ttft_ms": 2000.0, "tpot_ms": 100.0}
    result["plan"]["engine"] = {"max_num_seqs": seqs, "tensor_parallel_size": gpus}
    config["backend"] = {"name": "vllm", "engine": {"max_num_seqs": seqs}}
    result["environment"]["packages"]["vllm"] = vllm
    result["environment"]["driver"] = "580.65.06"
    metrics = {
        "samples_per_second": done, "tokens_per_second": done * 128, "output_tokens_mean": 128.0,
        "ttft_p50_ms": ttft / 3, "ttft_p99_ms": ttft, "tpot_p99_ms": tpot, "latency_p99_ms": ttft + 127 * tpot,
        "wall_samples_per_second": done * 0.6, "target_qps": qps, "gpu_sm_mhz_mean": 1700 + 20 * draw.standard_normal(),
    }  # fmt: skip
    if energy:
        metrics |= {"joules_per_token": watts * gpus / (done * 128), "gpu_power_mean_w": watts * gpus}
    result["metrics"] = result["metrics"] | metrics
    valid = ttft <= 2000 and tpot <= 100
    result["verdict"] |= {"valid": valid, "reasons": [] if valid else [f"TTFT p99 {ttft:,.0f} ms is over 2,000 ms."]}
    return result


def write(folder: Path, *results: Mapping[str, Any]) -> Path:
    """A sweep's folder of these results."""
    for number, result in enumerate(results):
        place = folder / str(number)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(result))
    return folder


def big(folder: Path, real: Mapping[str, Any]) -> Path:
    """500 runs: 10 loads, 5 engine settings, 2 sizes, 5 repeats."""
    return write(
        folder,
        *(
            variant(real, qps=qps, seqs=seqs, gpus=gpus, seed=seed)
            for seqs in (64, 128, 256, 512, 1024)
            for gpus in (1, 2)
            for qps in (2, 4, 6, 8, 12, 16, 20, 28, 36, 48)
            for seed in range(5)
        ),
    )
