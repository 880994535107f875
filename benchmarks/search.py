"""The search for the highest valid rate against an exhaustive scan, on simulated systems with known capacities.

    python benchmarks/search.py [--cases 0,1,2,3] [--step 0.01] [--below 0.02] [--above 0.06]

Each case is a system that answers so many queries at a time, and a search on it by the real LoadGen. The scan makes a
full run at each rate from ``below`` under to ``above`` over what the search found, ``step`` apart. Prints JSON. Goal:
at most 10 probes, and a rate within 3 % of the scan's highest valid one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.bench import measure, start
from mlperf_exp.inputs import load
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress
from mlperf_exp.search.probe import at_rate, judged


@dataclass(frozen=True, slots=True)
class Case:
    """``concurrency`` queries at a time, each in about ``latency_ms``; full runs of ``seconds``."""

    concurrency: int
    latency_ms: float
    sigma: float
    ttft_ms: float
    seconds: float
    seed: int

    @property
    def capacity_qps(self) -> float:
        """Queries a second that it can answer."""
        return self.concurrency / self.latency_ms * 1e3


CASES = (
    Case(25, 50, 0.1, 300, 10, 42),
    Case(25, 50, 0.1, 60, 20, 1),
    Case(64, 64, 0.3, 200, 10, 2),
    Case(8, 40, 0.3, 400, 20, 3),
    Case(128, 400, 0.3, 500, 20, 4),
)


def measured(case: Case, below: float, above: float, step: float) -> dict[str, Any]:
    """One search and its scan, as JSON values."""
    words = [
        "model=llama3_tiny", "backend=simulated", f"backend.sigma={case.sigma}", "backend.ttft_ms=5",
        "backend.output_tokens=46", f"backend.tpot_ms={(case.latency_ms - 5) / 45}", f"seed={case.seed}",
        f"backend.concurrency={case.concurrency}", "scenario=server", f"scenario.ttft_ms={case.ttft_ms}",
        f"scenario.min_duration_s={case.seconds}", "search=max_qps", "division=open", "progress=false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        plan = make_plan(compose("config", words), Path(folder))
        inputs = load(plan)
        with Progress(plan) as progress:
            system = start(plan, inputs, progress)
            try:
                search = measure(system, plan, inputs, progress).search or {}
                found = search["confirmed_qps"]
                scan: list[dict[str, Any]] = []
                for i in range(-round(below / step), round(above / step) + 1) if found else ():
                    full = at_rate(plan, found * (1 + i * step))
                    probe = judged(full, measure(system, full, inputs, progress), 0, True, 0)
                    scan.append({"target_qps": probe.target_qps, "valid": probe.valid, "reason": probe.reason})
            finally:
                system.stop()
    highest = max((row["target_qps"] for row in scan if row["valid"]), default=None)
    probes = search["probes"]
    return {
        "case": asdict(case) | {"capacity_qps": case.capacity_qps},
        "load": os.getloadavg(),
        "found_qps": found,
        "scan_qps": highest,
        "difference": None if not (found and highest) else found / highest - 1,
        "probes": sum(not probe["full"] for probe in probes),
        "full_runs": sum(probe["full"] for probe in probes),
        "search": [{key: probe[key] for key in ("target_qps", "valid", "reason", "full", "doubt")} for probe in probes],
        "scan": scan,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", default=",".join(map(str, range(len(CASES)))), help="which of the cases")
    parser.add_argument("--step", type=float, default=0.01)
    parser.add_argument("--below", type=float, default=0.02)
    parser.add_argument("--above", type=float, default=0.06)
    options = parser.parse_args()
    cli.register()
    chosen = [CASES[int(number)] for number in options.cases.split(",")]
    found = [measured(case, options.below, options.above, options.step) for case in chosen]
    differences = [abs(one["difference"]) for one in found if one["difference"] is not None]
    answer = {
        "cpus": os.cpu_count(),
        "largest_difference": max(differences) if len(differences) == len(found) else None,
        "most_probes": max(one["probes"] for one in found),
        "cases": found,
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
