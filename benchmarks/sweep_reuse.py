"""What a sweep over load points costs beside the measuring itself, on one engine start.

    python benchmarks/sweep_reuse.py [--points 12] [--seconds 10] [OVERRIDE ...]

Runs a sweep of so many target rates as a command of its own, by default on the simulated system; give
``backend=vllm`` for a real engine. ``ratio`` is the wall time of the whole command, less one engine start, over the
sum of the tests' own wall times; the bar is 1.15. ``starts`` counts the engines that were started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BAR = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, at each point")
    args, overrides = parser.parse_known_args()
    rates = ",".join(str(20 + i) for i in range(args.points))
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep")
        fixed = ["model=llama3_tiny", "backend=simulated", "scenario=server", "scenario.mode=performance",
                 "progress=false", "dataset.samples=16", "scenario.min_query_count=1",
                 f"scenario.min_duration_s={args.seconds}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]  # fmt: skip
        command = [sys.executable, "-m", "mlperf_exp", "-m", *fixed, *overrides]
        command += [f"scenario.target_qps={rates}", f"hydra.sweep.dir={sweep}"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall_s = time.perf_counter() - began
        results: list[dict[str, Any]] = [
            json.loads((sweep / str(i) / "result.json").read_text()) for i in range(args.points)
        ]
    starters = {result["run"]["engine_started_by"]: result["run"]["engine_start_s"] for result in results}
    measuring_s = sum(test["wall_s"] for result in results for test in result["tests"].values())
    start_s = sum(starters.values())
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": os.getloadavg()[0]},
        "points": args.points,
        "starts": len(starters),
        "start_s": round(start_s, 2),
        "measuring_s": round(measuring_s, 2),
        "wall_s": round(wall_s, 2),
        "ratio": round((wall_s - start_s) / measuring_s, 3),
        "bar_ratio": BAR,
        "passed": len(starters) == 1 and (wall_s - start_s) / measuring_s <= BAR,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
