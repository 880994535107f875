"""What telemetry and the live view cost the measured process: the harness benchmark's run with and without them.

    python benchmarks/telemetry.py [--qps 5000] [--seconds 10] [--repeats 3]

Prints JSON: processor time of the measured process a query, and LoadGen's p99, with telemetry off and on (and a monitor
looking on), and each pair's difference; the sampler's own processor time. Bar: below 1 % of the measured process. The
processor time of equal runs differs by more than that, so the cost is also given directly: the seconds which the
measured process spends on reading the last sample at each look, and the cores that the sampler takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlperf_exp.config import Telemetry
from mlperf_exp.telemetry import FILE
from mlperf_exp.telemetry.sampler import Sampler
from mlperf_exp.telemetry.tail import machine

BAR = 0.01


def run(qps: float, seconds: float, on: bool) -> dict[str, float]:
    """One run of the simulated system; processor time is of the whole process tree that ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        process = subprocess.Popen(
            [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={place}", "model=llama3_tiny", "backend=simulated",
             "scenario=server", f"scenario.target_qps={qps}", f"scenario.min_duration_s={seconds}", "progress=false",
             "scenario.mode=performance", "tracking.enabled=false", f"telemetry.enabled={str(on).lower()}"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        viewer = None
        if on:
            while not (place / "live.jsonl").exists() and process.poll() is None:
                time.sleep(0.2)
            viewer = subprocess.Popen([sys.executable, "-m", "mlperf_exp.monitor", str(place), "--interval", "1"],
                                      stdout=subprocess.DEVNULL)  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if viewer is not None:
            viewer.wait()
        result = json.loads((place / "result.json").read_text())
    queries = result["metrics"]["completed"]
    own = used.ru_utime + used.ru_stime  # of the process itself: its children are counted where they were waited for
    return {"cpu_us_a_query": 1e6 * own / queries, "p99_ms": result["metrics"]["latency_p99_ms"], "queries": queries}


def sampler(seconds: float) -> dict[str, float]:
    """The sampler beside this process: its cores, and what a look at its last sample costs."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with Sampler.start(Path(folder), Telemetry(), gpus=8):
            time.sleep(seconds)
            began = time.process_time()
            for _ in range(1000):
                machine(Path(folder) / FILE)
            look = (time.process_time() - began) / 1000
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (Path(folder) / FILE).stat().st_size
    cores = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / seconds
    return {"cores_start_included": cores, "look_us": 1e6 * look, "bytes_a_second": size / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--qps", type=float, default=5000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for i in range(options.repeats):  # in pairs, in changing order, so that a busy minute falls on no kind alone
        for name in ("off", "on") if i % 2 == 0 else ("on", "off"):
            runs[name].append(run(options.qps, options.seconds, name == "on"))
    medians: dict[str, Any] = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in runs.items()
    }
    pairs = [on["cpu_us_a_query"] / off["cpu_us_a_query"] - 1 for off, on in zip(runs["off"], runs["on"], strict=True)]
    cost = sampler(options.seconds)
    cost["share_of_the_measured_process"] = cost["look_us"] / 1e6  # a look each second
    found = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "medians": medians,
        "pairs": {"share_more_processor_time": pairs, "median": statistics.median(pairs), "bar": BAR},
        "sampler": cost,
        "runs": runs,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
