"""Two engines over one on a machine with two GPUs: offline, and server at the highest valid rate.

    python benchmarks/replicas_gpu.py [--model llama3_8b] [--hw h200] [--gpus 2] [--seconds 60] [--dummy]

Runs the whole command with ``backend.replicas=1`` and ``backend.replicas=GPUS``, one GPU each, fp8. Bars: 2 x H200
offline at least 1.95 times one, server at its highest valid rate at least 1.9 times. Prints JSON as far as it came.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FIGURES = ("samples_per_second", "tokens_per_second", "ttft_p99_ms", "tpot_p99_ms", "target_qps", "errors", "tail_s",
           "router_overhead_p50_ms", "router_overhead_p99_ms", "client_thread_cores", "replicas_lost")  # fmt: skip


def measure(replicas: int, options: argparse.Namespace, *words: str) -> dict[str, Any]:
    """One run of the command: its figures, or what it said last."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={run}", f"model={options.model}", f"hw={options.hw}",
            "backend=vllm", f"hw.gpus_per_node={options.gpus}", f"backend.replicas={replicas}",
            "backend.engine.tensor_parallel_size=1", "backend.engine.quantization=fp8",
            "scenario.mode=performance", f"scenario.min_duration_s={options.seconds}", "tracking.enabled=false",
            "progress=false", *(["model.weights=dummy"] if options.dummy else []), *words,
        ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=options.timeout)
        found: dict[str, Any] = {"replicas": replicas, "wall_s": time.perf_counter() - began, "status": done.returncode}
        if not (run / "result.json").exists():
            return found | {"said": done.stderr[-1500:]}
        result = json.loads((run / "result.json").read_text())
        metrics = result["metrics"]
        found |= {name: metrics[name] for name in FIGURES if name in metrics}
        return found | {"start_s": result["phases"].get("start_s"), "error": result["run"]["error"],
                        "reasons": result["verdict"]["reasons"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="llama3_8b")
    parser.add_argument("--hw", default="h200")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=59.0, help="of one engine offline, in samples/s: sizes the load")
    parser.add_argument("--server", type=float, default=40.0, help="where the search for one engine's rate begins")
    parser.add_argument("--parts", nargs="+", default=["offline", "server"])
    parser.add_argument("--dummy", action="store_true", help="no weights: speed only")
    parser.add_argument("--timeout", type=float, default=590)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for part in options.parts:
        rows = report[part] = []
        for count in (1, options.gpus):
            load = [f"scenario.target_qps={(options.rate if part == 'offline' else options.server) * count}"]
            if part == "offline":
                load += ["scenario=offline", f"scenario.min_query_count={int(options.rate * count * options.seconds)}"]
            else:
                load += ["scenario=server", "search=max_qps"]
            try:
                rows.append(measure(count, options, *load))
            except subprocess.TimeoutExpired:
                rows.append({"replicas": count, "error": f"took longer than {options.timeout:g} s"})
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report, indent=1))
        name = "samples_per_second" if part == "offline" else "target_qps"
        one, many = (row.get(name) for row in rows)
        report[f"{part}_over_one"] = many / one if one and many else None
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
