"""The search for the highest valid rate against an exhaustive scan, on a simulated system with a known capacity.

    python benchmarks/search.py [--seconds 10] [--step 0.01] [--span 0.06]

The system answers 25 queries at a time, each in about 50 ms: 500 queries/s. The scan makes a full run at each rate from
``span`` below to ``span`` above what the search found, ``step`` apart. Prints JSON. Goal: at most 10 probes, and a rate
within 3 % of the scan's highest valid one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.bench import measure, start
from mlperf_exp.inputs import load
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress
from mlperf_exp.search.probe import at_rate, judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=10, help="the length of a full run")
    parser.add_argument("--step", type=float, default=0.01)
    parser.add_argument("--span", type=float, default=0.06)
    parser.add_argument("--ttft-ms", type=float, default=300)
    options = parser.parse_args()
    words = [
        "model=llama3_tiny", "backend=simulated", "backend.sigma=0.1", "backend.ttft_ms=5", "backend.tpot_ms=1",
        "backend.output_tokens=46", "backend.concurrency=25", "scenario=server", f"scenario.ttft_ms={options.ttft_ms}",
        f"scenario.min_duration_s={options.seconds}", "search=max_qps", "division=open", "progress=false",
    ]  # fmt: skip
    cli.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        plan = make_plan(compose("config", words), Path(folder))
        inputs = load(plan)
        with Progress(plan) as progress:
            system = start(plan, inputs, progress)
            try:
                search = measure(system, plan, inputs, progress).search or {}
                found = search["confirmed_qps"]
                scan: list[dict[str, Any]] = []
                if found:
                    count = round(options.span / options.step)
                    for i in range(-count, count + 1):
                        rate = found * (1 + i * options.step)
                        probe = judged(
                            at_rate(plan, rate), measure(system, at_rate(plan, rate), inputs, progress), 0, True, 0
                        )
                        scan.append({"target_qps": rate, "valid": probe.valid, "reason": probe.reason, **probe.figures})
            finally:
                system.stop()
    highest = max((row["target_qps"] for row in scan if row["valid"]), default=None)
    probes = search["probes"]
    answer = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "found_qps": found,
        "scan_qps": highest,
        "difference": None if not (found and highest) else found / highest - 1,
        "probes": sum(not probe["full"] for probe in probes),
        "full_runs": sum(probe["full"] for probe in probes),
        "search": probes,
        "scan": scan,
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
