"""What a launcher costs a job: trivial jobs on ``local``, and on others beside the same jobs submitted by hand.

    python benchmarks/launchers.py [--launcher local slurm kubernetes] [--jobs 1 10 100] [--repeats 3]

Each sweep runs as a command of its own. ``command_s`` is that of composing alone (``--cfg job``), and is taken off.

local       ``overhead_s``: wall time for each job, less ``process_start_s``, the start of a Python that imports what
            its process needs. With several jobs at once the share of the start that overlaps is credited.
slurm       on a Slurm of two pretend hosts (``tests/clusters/slurm.py``; as root) unless SLURM_CONF names one. By hand:
            the scripts of ``dryrun`` given to sbatch one after another, until the queue is empty.
kubernetes  on a control plane of two pretend nodes (``tests/clusters/k8s.py``; as root, built by ``make
            test-clusters``) unless KUBECONFIG names one. By hand: the manifests of ``dryrun`` created by the official
            client, imported already, one after another, until all Jobs have completed; neither logs nor results are
            fetched, nothing is removed.

``over_hand_s``: wall time of the sweep, less ``command_s``, less that by hand. ``first_line_s``: from submission to the
job's first statement; ``in_hand_s``: from its last statement to the result in the launcher's hand; medians.
``in_order`` says that no job, and not their order, was lost. Each figure is the median of ``--repeats`` sweeps, between
which those by hand stand, so that a busy minute does not fall on one side alone; ``runs`` has them all.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

LOCAL_BAR_S = 1.2
HAND_BAR_S = 2.0
APP = """
import time
began = time.time()
import hydra, json, os
from pathlib import Path
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    path = Path(HydraConfig.get().runtime.output_dir, "seen.json")
    own = os.environ.get("SLURM_JOB_ID") or os.environ.get("MLPERF_EXP_JOB")
    path.write_text(json.dumps([cfg.n, os.getpid(), own, began, time.time()]))


main()
"""
START = "import hydra_plugins.mlperf_launchers._child"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class System:
    """Machines to which jobs can also be submitted by hand."""

    start: Callable[[Path], contextlib.AbstractContextManager[str | None]]  # yields why there are none
    submit: Callable[[Path, str], Callable[[], bool]]  # what dryrun printed -> whether all have ended
    overrides: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--launcher", nargs="+", choices=("local", *SYSTEMS), default=["local", *SYSTEMS])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    report: dict[str, object] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": os.getloadavg()[0]}
    }
    sys.path.insert(0, str(HERE.parent))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # users' machines keep what was compiled
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(APP)
        command_s = statistics.median(seconds([sys.executable, str(app), "--cfg", "job"]) for _ in range(5))
        report["command_s"] = round(command_s, 3)
        for name in args.launcher:
            if name == "local":
                report[name] = local(app, args.jobs, command_s, args.repeats)
                continue
            with SYSTEMS[name].start(Path(folder, name)) as why:
                if why is not None:
                    report[name] = {"skipped": why}
                    continue
                report[name] = beside_hand(app, name, args.jobs, command_s, args.repeats)
    print(json.dumps(report, indent=2))


def local(app: Path, sizes: list[int], command_s: float, repeats: int) -> dict[str, object]:
    """The launcher ``local``: one job at a time, and at last two."""
    start_s = statistics.median(seconds([sys.executable, "-c", START]) for _ in range(5))
    sweeps = []
    for jobs, parallel in [*((n, 1) for n in sizes), (max(sizes), 2)]:
        runs = []
        for _ in range(repeats):
            wall_s, _, in_order = sweep(app, "local", jobs, parallel)
            overhead_s = (wall_s - command_s) / jobs - start_s
            runs.append({"wall_s": wall_s, "overhead_s": overhead_s, "in_order": in_order})
        sweeps.append({"jobs": jobs, "max_parallel": parallel, **medians(runs)})
    return {
        "process_start_s": round(start_s, 3),
        "bar_overhead_s": LOCAL_BAR_S,
        "sweeps": sweeps,
        "passed": all(float(str(one["overhead_s"])) < LOCAL_BAR_S and bool(one["in_order"]) for one in sweeps),
    }


def beside_hand(app: Path, launcher: str, sizes: list[int], command_s: float, repeats: int) -> dict[str, object]:
    """A launcher to other machines beside the same jobs submitted by hand."""
    sweep(app, launcher, 1, 1)  # whatever only a first one does
    by_hand(app, launcher, 1)
    sweeps = []
    for jobs in sizes:
        runs = []
        for _ in range(repeats):
            hand_s = by_hand(app, launcher, jobs)
            wall_s, folder, in_order = sweep(app, launcher, jobs, jobs)
            over_s = wall_s - command_s - hand_s
            runs.append(
                {"wall_s": wall_s, "by_hand_s": hand_s, "over_hand_s": over_s, **waits(folder), "in_order": in_order}
            )
        sweeps.append({"jobs": jobs, **medians(runs)})
    return {
        "bar_over_hand_s": HAND_BAR_S,
        "sweeps": sweeps,
        "passed": all(float(str(one["over_hand_s"])) < HAND_BAR_S and bool(one["in_order"]) for one in sweeps),
    }


def waits(folder: Path) -> dict[str, float]:
    """How long jobs waited to begin, and their results for the launcher; medians over the jobs."""
    first, last = [], []
    for n, job in enumerate(json.loads((folder / "jobs.json").read_text())["jobs"]):
        *_, began, ended = json.loads((folder / str(n) / "seen.json").read_text())
        attempt = job["attempts"][-1]
        first.append(began - datetime.fromisoformat(attempt["submitted_at"]).timestamp())
        last.append(datetime.fromisoformat(attempt["ended_at"]).timestamp() - ended)
    return {"first_line_s": statistics.median(first), "in_hand_s": statistics.median(last)}


def medians(runs: list[dict[str, float]]) -> dict[str, object]:
    """Of each figure; ``in_order`` only where it always was."""
    rounded = [{name: round(value, 3) for name, value in run.items()} for run in runs]
    found: dict[str, object] = {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}
    found["in_order"] = all(run["in_order"] for run in runs)
    return {**found, "runs": rounded} if len(runs) > 1 else found


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def words(app: Path, launcher: str, folder: Path, jobs: int, parallel: int) -> list[str]:
    """The command of a sweep."""
    overrides = [f"+n=range({jobs})", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}"]
    chosen = [f"hydra/launcher={launcher}", f"hydra.launcher.max_parallel={parallel}"]
    more = SYSTEMS[launcher].overrides if launcher in SYSTEMS else ()
    return [sys.executable, str(app), "-m", *chosen, *more, *overrides]


def sweep(app: Path, launcher: str, jobs: int, parallel: int) -> tuple[float, Path, bool]:
    """Run one sweep of ``jobs`` trivial jobs, and check what each of them saw."""
    folder = Path(tempfile.mkdtemp(prefix=f"{launcher}_{jobs}_{parallel}_", dir=app.parent))
    wall_s = seconds(words(app, launcher, folder, jobs, parallel))
    seen = [json.loads((folder / str(n) / "seen.json").read_text()) for n in range(jobs)]
    own = {tuple(one[1:3]) for one in seen}
    return wall_s, folder, [one[0] for one in seen] == list(range(jobs)) and len(own) == jobs


def by_hand(app: Path, launcher: str, jobs: int) -> float:
    """Submit what the same sweep would, and wait for the end of the last."""
    folder = Path(tempfile.mkdtemp(prefix=f"{launcher}_hand_{jobs}_", dir=app.parent))
    command = [*words(app, launcher, folder, jobs, jobs), "hydra.launcher.dryrun=true"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if launcher == "kubernetes":
        from kubernetes.client import BatchV1Api  # noqa: F401 - before the clock runs, with all their models
    for n in range(jobs):
        (folder / str(n)).mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    ended = SYSTEMS[launcher].submit(folder, text)
    while not ended():
        time.sleep(0.2)
    return time.perf_counter() - began


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[str | None]:
    """A Slurm to measure on."""
    from tests.clusters.slurm import Slurm, missing

    if "SLURM_CONF" in os.environ or (why := missing()) is not None:
        yield None if "SLURM_CONF" in os.environ else why
        return
    cluster = Slurm(folder, "b", "10.97.251")
    try:
        cluster.start()
        os.environ.update(cluster.environment)
        yield None
    finally:
        cluster.stop()


def sbatch(folder: Path, text: str) -> Callable[[], bool]:
    """Give the scripts to sbatch, one after another."""
    for n, script in enumerate(re.split(r"^# job \d+: .*\n", text, flags=re.MULTILINE)[1:]):
        path = folder / f"{n}.sbatch"
        path.write_text(script)
        subprocess.run(["sbatch", "--parsable", str(path)], check=True, capture_output=True)
    queue = ["squeue", "--noheader", "--me"]
    return lambda: not subprocess.run(queue, check=True, capture_output=True).stdout.strip()


@contextlib.contextmanager
def kubernetes(folder: Path) -> Iterator[str | None]:
    """A control plane to measure on."""
    from tests.clusters.k8s import Kubernetes, missing

    if "KUBECONFIG" in os.environ or (why := missing()) is not None:
        yield None if "KUBECONFIG" in os.environ else why
        return
    cluster = Kubernetes(folder, "kb", "10.98.251")
    cluster.capacity["pods"] = "110"  # as kubelets have it
    try:
        cluster.start()
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
        yield None
    finally:
        cluster.stop()


def create(_: Path, text: str) -> Callable[[], bool]:
    """Create the objects with the official client, one after another."""
    import urllib3
    import yaml
    from kubernetes import client, config

    objects = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    config.load_kube_config(os.environ["KUBECONFIG"])
    urllib3.disable_warnings()
    batch = client.BatchV1Api()
    for each in objects:
        batch.create_namespaced_job(each["metadata"]["namespace"], each)
    first = objects[0]["metadata"]
    chosen = f"mlperf-exp/sweep={first['labels']['mlperf-exp/sweep']}"

    def ended() -> bool:
        jobs = batch.list_namespaced_job(first["namespace"], label_selector=chosen).items
        return sum(job.status.succeeded or 0 for job in jobs) == len(objects)

    return ended


SYSTEMS = {
    "slurm": System(slurm, sbatch, ("hydra.launcher.backend.exclusive=false",)),
    "kubernetes": System(
        kubernetes, create, ("hydra.launcher.backend.image=local:1", f"hydra.launcher.python={sys.executable}")
    ),
}


if __name__ == "__main__":
    main()
