"""How long ``python -m mlperf_exp --cfg job`` and ``--help`` take: medians of 7 fresh processes each, as JSON.

python benchmarks/startup.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = 7
COMMANDS = {
    "interpreter": ["-c", "pass"],
    "cfg_job": ["-m", "mlperf_exp", "--cfg", "job"],
    "cfg_job_quickstart": ["-m", "mlperf_exp", "--cfg", "job", "experiment=quickstart"],
    "help": ["-m", "mlperf_exp", "--help"],
    "refused": ["-m", "mlperf_exp", "model=nope"],
}


def seconds(words: list[str], folder: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for run in range(RUNS + 1):
            for name, words in COMMANDS.items():  # interleaved: what else the machine does meets all alike
                took = seconds(words, folder)
                if run:  # the first fills the page cache
                    times[name].append(took)
    report = {
        f"{name}_s": {
            "median": round(statistics.median(all_), 3),
            "min": round(min(all_), 3),
            "max": round(max(all_), 3),
        }
        for name, all_ in times.items()
    }
    print(json.dumps({"runs": RUNS, "bar": {"cfg_job_s": 0.8}, **report}, indent=2))


if __name__ == "__main__":
    main()
