"""A long server run under observation: memory, open files, threads, and every query once.

    python benchmarks/soak.py [--minutes 60] [--qps 100]                    # the simulated system
    python benchmarks/soak.py --vllm [--minutes 10] [--qps 8]               # vLLM on the small Llama

Looks every two seconds at the measured process (its resident memory, open files, threads). The first tenth is warm-up.
Prints JSON, the growth in memory also for each query. Bar: no query lost or doubled, open files flat, and memory grown
by less than 1 %.

LoadGen reserves room for the latencies of the whole test at its start (std::vector::reserve) and first touches it query
by query, which looks like a leak of 16 bytes a query. With the simulated system the C library fills what it hands out
(MALLOC_PERTURB_), so that such room counts from the start; ``--unfilled`` leaves that out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

SIMULATED = ["model=llama3_tiny", "backend=simulated", "scenario.mode=performance"]
VLLM = ["experiment=quickstart", "scenario.mode=performance"]


def watched(process: subprocess.Popen[bytes], live: Path) -> list[dict[str, float]]:
    """What the process held, every two seconds of the test."""
    looked = psutil.Process(process.pid)
    rows = []
    while process.poll() is None:
        time.sleep(2)
        if not live.exists():
            continue
        try:
            with live.open("rb") as file:
                file.seek(max(0, live.stat().st_size - 2000))
                last = json.loads(file.read().splitlines()[-1])
            if rows and last["issued"] == rows[-1]["queries"]:
                continue  # the test has ended
            rows.append(
                {"at_s": time.monotonic(), "queries": last["issued"], "rss": looked.memory_info().rss,
                 "files": looked.num_fds(), "threads": looked.num_threads()}
            )  # fmt: skip
        except (psutil.Error, ValueError, IndexError):
            continue
    return rows


def judged(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Growth between the medians of two equal parts: the one after the warm-up and the last."""
    part = len(rows) // 10
    first, last = rows[part : 2 * part], rows[-2 * part : -part]  # the very end writes the record
    median = {key: [statistics.median(row[key] for row in some) for some in (first, last)] for key in rows[0]}
    grown, queries = (median[key][1] - median[key][0] for key in ("rss", "queries"))
    return {
        "looks": len(rows),
        "rss_mib": [round(value / 2**20, 1) for value in median["rss"]],
        "rss_mib_by_tenths": [round(row["rss"] / 2**20, 2) for row in rows[:: max(1, part)]],
        "growth_percent": 100 * grown / median["rss"][0],
        "growth_bytes_a_query": grown / max(1, queries),
        "open_files": median["files"],
        "threads": median["threads"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--unfilled", action="store_true")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--qps", type=float)
    options = parser.parse_args()
    minutes = options.minutes or (10 if options.vllm else 60)
    qps = options.qps or (8 if options.vllm else 100)
    fill = {} if options.vllm or options.unfilled else {"MALLOC_PERTURB_": "85"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        process = subprocess.Popen(
            [sys.executable, "-m", "mlperf_exp", *(VLLM if options.vllm else SIMULATED), f"hydra.run.dir={run}",
             "scenario=server", f"scenario.target_qps={qps}", f"scenario.min_duration_s={60 * minutes}",
             "progress=false", f"tracking.uri=sqlite:///{folder}/mlflow.db"],
            stdout=subprocess.DEVNULL, env=os.environ | fill,
        )  # fmt: skip
        rows = watched(process, run / "live.jsonl")
        result = json.loads((run / "result.json").read_text())
        table = pq.read_table(run / "performance" / "queries.parquet", columns=["row", "error"])
    metrics, test = result["metrics"], result["tests"]["performance"]
    print(json.dumps({
        "system": "vllm" if options.vllm else "simulated", "minutes": minutes, "qps": qps, "load": os.getloadavg(),
        "filled": bool(fill),
        "exit_status": process.returncode, "status": result["run"]["status"],
        "queries": {"loadgen": test["loadgen"]["generated_query_count"], "issued": test["issued"],
                    "completed": test["completed"], "errors": metrics["errors"], "duplicates": metrics["duplicates"],
                    "rows": len(set(table["row"].to_pylist()))},
        "ttft_p99_ms": metrics.get("ttft_p99_ms"), "issue_delay_p99_ms": metrics.get("issue_delay_p99_ms"),
        **judged(rows),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
