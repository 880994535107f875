"""What the framework itself adds to a query: the simulated system, through the whole command, at a given rate.

    python benchmarks/harness.py [--qps 10000 40000] [--seconds 20] [--repeats 3]

The simulated system answers each query after exactly 20 ms (first token) and 147 ms (end), so that everything above
that, counted by LoadGen from the scheduled time, was added by LoadGen's thread, the driver and the sink. Prints JSON:
for each rate the median over the repeats, and all repeats. Bar: 10,000 qps with p99 added below 5 ms on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TTFT_MS, TPOT_MS, TOKENS = 20.0, 1.0, 128
LATENCY_MS = TTFT_MS + TPOT_MS * (TOKENS - 1)


def measure(qps: float, seconds: float) -> dict[str, Any]:
    """One run; latencies are what LoadGen measured from the schedule less what the system was told to take."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder) / "run", qps, seconds, f"tracking.uri=sqlite:///{folder}/mlflow.db")
    return added(result)


def run(folder: Path, qps: float, seconds: float, *words: str) -> dict[str, Any]:
    """The record of the whole command over the simulated system, which takes fixed times, with these overrides more."""
    subprocess.run(
        [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={folder}", "model=llama3_tiny", "backend=simulated",
         "scenario=server", f"scenario.target_qps={qps}", f"scenario.min_duration_s={seconds}", "progress=false",
         "backend.sigma=0", f"backend.ttft_ms={TTFT_MS}", f"backend.tpot_ms={TPOT_MS}",
         f"backend.output_tokens={TOKENS}", *words],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    record: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return record


def added(result: dict[str, Any]) -> dict[str, Any]:
    """What LoadGen counted above the fixed times of :func:`run`."""
    logged = result["tests"]["performance"]["loadgen"]
    latency, ttft = "result_{}_percentile_latency_ns", "result_first_token_{}_percentile_latency_ns"
    return {
        "queries": logged["generated_query_count"],
        "completed_per_second": logged["result_completed_samples_per_sec"],
        "loadgen": logged["result_validity"],
        "added_p50_ms": logged[latency.format("50.00")] / 1e6 - LATENCY_MS,
        "added_p99_ms": logged[latency.format("99.00")] / 1e6 - LATENCY_MS,
        "added_p999_ms": logged[latency.format("99.90")] / 1e6 - LATENCY_MS,
        "added_ttft_p99_ms": logged[ttft.format("99.00")] / 1e6 - TTFT_MS,
        "errors": result["metrics"]["errors"],
        "duplicates": result["metrics"]["duplicates"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--qps", type=float, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs: dict[float, list[dict[str, Any]]] = {qps: [] for qps in options.qps}
    for _ in range(options.repeats):  # interleaved, so that a busy minute does not fall on one rate alone
        for qps in options.qps:
            runs[qps].append(measure(qps, options.seconds))
    medians = [
        {"qps": qps, **{k: statistics.median(r[k] for r in rows) for k, v in rows[0].items() if not isinstance(v, str)}}
        for qps, rows in runs.items()
    ]
    print(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg(), "medians": medians, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
