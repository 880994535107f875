"""What the launcher ``local`` costs a job beyond the start of its process.

    python benchmarks/launcher_local.py [--jobs 1 10 100]

Each sweep runs trivial jobs as a command of its own. ``overhead_s`` is the wall time of the sweep, less that of the
command itself (measured on ``--cfg job``), for each job, less ``process_start_s``: a Python that imports Hydra and what
else a job's process needs to read its job. With several jobs at once, the share of the start that overlaps is
credited, so that the figure may be negative. ``in_order`` says that no job, and not their order, was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAR_S = 1.2
APP = """
import hydra, json, os
from pathlib import Path
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    Path(HydraConfig.get().runtime.output_dir, "seen.json").write_text(json.dumps([cfg.n, os.getpid()]))


main()
"""
START = "import hydra_plugins.mlperf_launchers._child"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 10, 100])
    sizes: list[int] = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(APP)
        command_s = statistics.median(seconds([sys.executable, str(app), "--cfg", "job"]) for _ in range(5))
        start_s = statistics.median(seconds([sys.executable, "-c", START]) for _ in range(5))
        sweeps = [sweep(app, n, 1, command_s, start_s) for n in sizes]
        sweeps.append(sweep(app, max(sizes), 2, command_s, start_s))
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": os.getloadavg()[0]},
        "command_s": round(command_s, 3),
        "process_start_s": round(start_s, 3),
        "bar_overhead_s": BAR_S,
        "sweeps": sweeps,
        "passed": all(float(s["overhead_s"]) < BAR_S and bool(s["in_order"]) for s in sweeps),
    }
    print(json.dumps(report, indent=2))


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def sweep(app: Path, jobs: int, parallel: int, command_s: float, start_s: float) -> dict[str, object]:
    """Run one sweep of ``jobs`` trivial jobs and check what each of them saw."""
    folder = app.parent / f"sweep_{jobs}_{parallel}"
    overrides = [f"+n=range({jobs})", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}"]
    launcher = ["hydra/launcher=local", f"hydra.launcher.max_parallel={parallel}"]
    wall_s = seconds([sys.executable, str(app), "-m", *launcher, *overrides])
    seen = [json.loads((folder / str(n) / "seen.json").read_text()) for n in range(jobs)]
    in_order = [value for value, _ in seen] == list(range(jobs)) and len({pid for _, pid in seen}) == jobs
    return {
        "jobs": jobs,
        "max_parallel": parallel,
        "wall_s": round(wall_s, 3),
        "job_s": round((wall_s - command_s) / jobs, 3),
        "overhead_s": round((wall_s - command_s) / jobs - start_s, 3),
        "in_order": in_order,
    }


if __name__ == "__main__":
    main()
