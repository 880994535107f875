"""Load points of the whole command on one engine start, and what each measured: for the benchmarks on GPUs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FIGURES = (
    "samples_per_second", "tokens_per_second", "wall_samples_per_second", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms",
    "tpot_p99_ms", "queries", "errors", "prompt_tokens_mean", "output_tokens_mean", "client_thread_cores",
    "issue_delay_p99_ms", "loop_lag_p99_ms", "joules_per_token", "gpu_power_mean_w", "gpu_power_max_w",
    "gpu_busy_percent_mean", "gpu_sm_mhz_mean", "gpu_memory_max_mib", "tail_s", "router_overhead_p50_ms",
    "router_overhead_p99_ms", "replicas_lost",
)  # fmt: skip

_STARTING = re.compile(r"(took|in) [\d.]+ ?s|Initializing a V1|Resolved arch|world_size=|Starting to load|AOT")


def sweep(
    folder: Path, points: list[tuple[str, float]], words: list[str], *, seconds: float, offline: int, timeout: float
) -> list[dict[str, Any]]:
    """Run ``(scenario, queries/s)`` after each other on one engine start.

    Args:
        folder: where the sweep and its points are written.
        points: of ``offline`` the rate is only told to LoadGen.
        words: the overrides that all points share.
        seconds: of load where arrivals are by rate.
        offline: samples of an offline point.
        timeout: seconds of the whole sweep.

    Returns:
        One row a point: its figures, or ``error``.
    """
    named = folder / "points" / "experiment"
    named.mkdir(parents=True, exist_ok=True)
    names = []
    for number, (scenario, rate) in enumerate(points):
        names.append(f"point{number}")
        least, duration = (offline, 0) if scenario == "offline" else (1, seconds)
        (named / f"point{number}.yaml").write_text(
            f"# @package _global_\ndefaults:\n  - override /scenario: {scenario}\n  - _self_\n"
            f"scenario: {{target_qps: {rate}, min_query_count: {least}, min_duration_s: {duration}}}\n"
        )
    into = folder / "sweep"
    command = [sys.executable, "-m", "mlperf_exp", "-m", f"hydra.searchpath=[file://{folder}/points]",
               f"experiment={','.join(names)}", f"hydra.sweep.dir={into}", "tracking.enabled=false", "progress=false",
               "scenario.mode=performance",
               *words]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        said = (done.stderr or done.stdout)[-1500:]
    except subprocess.TimeoutExpired:
        said = f"took longer than {timeout:g} s"
    rows = []
    for number, (scenario, rate) in enumerate(points):
        run, row = into / str(number), {"scenario": scenario, "target_qps": rate}
        if (run / "result.json").exists():
            rows.append(row | figures(json.loads((run / "result.json").read_text()), run))
        else:
            rows.append(row | {"error": said})
    return rows


def figures(result: dict[str, Any], run: Path) -> dict[str, Any]:
    """What one run measured."""
    metrics = result["metrics"]
    logged = result["tests"].get("performance", {}).get("loadgen", {})
    found = {name: metrics[name] for name in FIGURES if name in metrics}
    log = run / "engine.log"
    said = log.read_text(errors="replace") if log.exists() else ""
    failed = result["run"]["status"] != "finished"
    return found | {
        "loadgen": logged.get("result_validity"), "status": result["run"]["status"], "error": result["run"]["error"],
        "warnings": result["verdict"]["warnings"], "start_s": result["phases"].get("start_s"),
        "log": said[-1500:] if failed else None,
        "start": [line[-160:] for line in said.splitlines() if _STARTING.search(line)][:20],
    }  # fmt: skip
