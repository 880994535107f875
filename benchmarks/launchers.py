"""What a launcher costs a job: trivial jobs on ``local``, and on ``slurm`` beside the same jobs submitted by hand.

    python benchmarks/launchers.py [--launcher local slurm] [--jobs 1 10 100]

Each sweep runs as a command of its own. ``command_s`` is that of composing alone (``--cfg job``), and is taken off.

local   ``overhead_s``: wall time for each job, less ``process_start_s``, the start of a Python that imports what its
        process needs. With several jobs at once the share of the start that overlaps is credited.
slurm   starts a Slurm of two pretend hosts (``tests/clusters/slurm.py``; as root) unless SLURM_CONF names one.
        ``over_hand_s``: wall time of the sweep, less that of the same scripts (from ``dryrun``) given to sbatch one
        after another. ``first_line_s``: from submission to the job's first statement; ``in_hand_s``: from its last
        statement to the result in the launcher's hand; medians.

``in_order`` says that no job, and not their order, was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

LOCAL_BAR_S = 1.2
SLURM_BAR_S = 2.0
APP = """
import time
began = time.time()
import hydra, json, os
from pathlib import Path
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    path = Path(HydraConfig.get().runtime.output_dir, "seen.json")
    path.write_text(json.dumps([cfg.n, os.getpid(), os.environ.get("SLURM_JOB_ID"), began, time.time()]))


main()
"""
START = "import hydra_plugins.mlperf_launchers._child"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--launcher", nargs="+", choices=("local", "slurm"), default=["local", "slurm"])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 10, 100])
    args = parser.parse_args()
    report: dict[str, object] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": os.getloadavg()[0]}
    }
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(APP)
        command_s = statistics.median(seconds([sys.executable, str(app), "--cfg", "job"]) for _ in range(5))
        report["command_s"] = round(command_s, 3)
        if "local" in args.launcher:
            report["local"] = local(app, args.jobs, command_s)
        if "slurm" in args.launcher:
            with slurm(Path(folder)) as why:
                report["slurm"] = on_slurm(app, args.jobs, command_s) if why is None else {"skipped": why}
    print(json.dumps(report, indent=2))


def local(app: Path, sizes: list[int], command_s: float) -> dict[str, object]:
    """The launcher ``local``: one job at a time, and at last two."""
    start_s = statistics.median(seconds([sys.executable, "-c", START]) for _ in range(5))
    sweeps = []
    for jobs, parallel in [*((n, 1) for n in sizes), (max(sizes), 2)]:
        wall_s, _, in_order = sweep(app, "local", jobs, parallel)
        sweeps.append(
            {
                "jobs": jobs,
                "max_parallel": parallel,
                "wall_s": round(wall_s, 3),
                "overhead_s": round((wall_s - command_s) / jobs - start_s, 3),
                "in_order": in_order,
            }
        )
    return {
        "process_start_s": round(start_s, 3),
        "bar_overhead_s": LOCAL_BAR_S,
        "sweeps": sweeps,
        "passed": all(float(str(one["overhead_s"])) < LOCAL_BAR_S and bool(one["in_order"]) for one in sweeps),
    }


def on_slurm(app: Path, sizes: list[int], command_s: float) -> dict[str, object]:
    """The launcher ``slurm`` beside ``sbatch`` by hand."""
    sweeps = []
    for jobs in sizes:
        hand_s = by_hand(app, jobs)
        wall_s, folder, in_order = sweep(app, "slurm", jobs, jobs)
        told = json.loads((folder / "jobs.json").read_text())["jobs"]
        first, last = [], []
        for n, job in enumerate(told):
            *_, began, ended = json.loads((folder / str(n) / "seen.json").read_text())
            attempt = job["attempts"][-1]
            first.append(began - datetime.fromisoformat(attempt["submitted_at"]).timestamp())
            last.append(datetime.fromisoformat(attempt["ended_at"]).timestamp() - ended)
        sweeps.append(
            {
                "jobs": jobs,
                "wall_s": round(wall_s, 3),
                "by_hand_s": round(hand_s, 3),
                "over_hand_s": round(wall_s - command_s - hand_s, 3),
                "first_line_s": round(statistics.median(first), 3),
                "in_hand_s": round(statistics.median(last), 3),
                "in_order": in_order,
            }
        )
    return {
        "bar_over_hand_s": SLURM_BAR_S,
        "sweeps": sweeps,
        "passed": all(float(str(one["over_hand_s"])) < SLURM_BAR_S and bool(one["in_order"]) for one in sweeps),
    }


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[str | None]:
    """A Slurm to measure on; why there is none."""
    if "SLURM_CONF" in os.environ:
        yield None
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.clusters.slurm import Slurm, missing

    why = missing()
    if why is not None:
        yield why
        return
    cluster = Slurm(folder / "slurm", "b", "10.97.251")
    try:
        cluster.start()
        os.environ.update(cluster.environment)
        yield None
    finally:
        cluster.stop()


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def words(app: Path, launcher: str, folder: Path, jobs: int, parallel: int) -> list[str]:
    """The command of a sweep."""
    overrides = [f"+n=range({jobs})", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}"]
    chosen = [f"hydra/launcher={launcher}", f"hydra.launcher.max_parallel={parallel}"]
    if launcher == "slurm":
        chosen.append("hydra.launcher.backend.exclusive=false")
    return [sys.executable, str(app), "-m", *chosen, *overrides]


def sweep(app: Path, launcher: str, jobs: int, parallel: int) -> tuple[float, Path, bool]:
    """Run one sweep of ``jobs`` trivial jobs, and check what each of them saw."""
    folder = app.parent / f"{launcher}_{jobs}_{parallel}"
    wall_s = seconds(words(app, launcher, folder, jobs, parallel))
    seen = [json.loads((folder / str(n) / "seen.json").read_text()) for n in range(jobs)]
    own = {tuple(one[1:3]) for one in seen}
    return wall_s, folder, [one[0] for one in seen] == list(range(jobs)) and len(own) == jobs


def by_hand(app: Path, jobs: int) -> float:
    """Give the scripts of the same sweep to sbatch, and wait until the last job has left the queue."""
    folder = app.parent / f"hand_{jobs}"
    command = [*words(app, "slurm", folder, jobs, jobs), "hydra.launcher.dryrun=true"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scripts = []
    for n, script in enumerate(re.split(r"^# job \d+: .*\n", text, flags=re.MULTILINE)[1:]):
        (folder / str(n)).mkdir(parents=True, exist_ok=True)
        scripts.append(folder / f"{n}.sbatch")
        scripts[-1].write_text(script)
    began = time.perf_counter()
    for path in scripts:
        subprocess.run(["sbatch", "--parsable", str(path)], check=True, capture_output=True)
    queue = ["squeue", "--noheader", "--me"]
    while subprocess.run(queue, check=True, capture_output=True).stdout.strip():
        time.sleep(0.2)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
