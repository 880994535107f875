"""What the launcher ``kubernetes`` costs: trivial jobs beside the same Jobs submitted by hand with the official client.

    sudo make test-clusters ARGS=--collect-only      # builds the control plane, once
    sudo .venv/bin/python benchmarks/launcher_kubernetes.py [--jobs 1 10]

Starts a control plane of two pretend nodes (``tests/clusters/k8s.py``; as root) unless KUBECONFIG names one. By hand
means the manifests of ``dryrun``, created one after another, and asked for until all have completed. ``over_hand_s``:
wall time of the sweep, less that of composing alone (``--cfg job``), less that by hand. ``in_order`` says that no job,
and not their order, was lost.
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

import urllib3
import yaml

BAR_S = 2.0
APP = """
import hydra, json, os
from pathlib import Path
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    Path(HydraConfig.get().runtime.output_dir, "seen.json").write_text(json.dumps([cfg.n, os.getpid()]))


main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 10])
    sizes: list[int] = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder, "app.py")
        app.write_text(APP)
        if "KUBECONFIG" in os.environ:
            report = measured(app, sizes)
        else:
            sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "clusters"))
            from k8s import Kubernetes, missing

            if why := missing():
                sys.exit(f"launcher_kubernetes.py: {why}")
            cluster = Kubernetes(Path(folder, "cluster"), "kb", "10.98.251")
            try:
                cluster.start()
                os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
                report = measured(app, sizes)
            finally:
                cluster.stop()
    print(json.dumps(report, indent=2))


def measured(app: Path, sizes: list[int]) -> dict[str, object]:
    """All sweeps, each beside the same by hand."""
    command_s = statistics.median(seconds([sys.executable, str(app), "--cfg", "job"]) for _ in range(3))
    sweeps = []
    for jobs in sizes:
        hand_s = by_hand(app, jobs)
        folder = app.parent / f"sweep_{jobs}"
        wall_s = seconds(words(app, folder, jobs))
        seen = [json.loads((folder / str(n) / "seen.json").read_text()) for n in range(jobs)]
        over_s = wall_s - command_s - hand_s
        sweeps.append(
            {
                "jobs": jobs,
                "wall_s": round(wall_s, 3),
                "by_hand_s": round(hand_s, 3),
                "over_hand_s": round(over_s, 3),
                "in_order": [value for value, _ in seen] == list(range(jobs)),
            }
        )
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": os.getloadavg()[0]},
        "command_s": round(command_s, 3),
        "bar_over_hand_s": BAR_S,
        "sweeps": sweeps,
        "passed": all(float(str(one["over_hand_s"])) < BAR_S and bool(one["in_order"]) for one in sweeps),
    }


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def words(app: Path, folder: Path, jobs: int) -> list[str]:
    """The command of a sweep."""
    place = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra.job.num}", f"+n=range({jobs})"]
    chosen = ["hydra/launcher=kubernetes", "hydra.launcher.backend.image=local:1"]
    return [sys.executable, str(app), "-m", *chosen, f"hydra.launcher.python={sys.executable}", *place]


def by_hand(app: Path, jobs: int) -> float:
    """Create the same objects with the client, and ask until all Jobs have completed."""
    from kubernetes import client, config

    command = [*words(app, app.parent / f"hand_{jobs}", jobs), "hydra.launcher.dryrun=true"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]
    config.load_kube_config(os.environ["KUBECONFIG"])
    urllib3.disable_warnings()
    core, batch = client.CoreV1Api(), client.BatchV1Api()
    began = time.perf_counter()
    for each in objects:
        create = core.create_namespaced_config_map if each["kind"] == "ConfigMap" else batch.create_namespaced_job
        create(each["metadata"]["namespace"], each)
    sweep = objects[0]["metadata"]["labels"]["mlperf-exp/sweep"]
    space, chosen = objects[0]["metadata"]["namespace"], f"mlperf-exp/sweep={sweep}"
    while (
        sum(job.status.succeeded or 0 for job in batch.list_namespaced_job(space, label_selector=chosen).items) < jobs
    ):
        time.sleep(0.2)
    took = time.perf_counter() - began
    for each in objects:
        delete = core.delete_namespaced_config_map if each["kind"] == "ConfigMap" else batch.delete_namespaced_job
        delete(each["metadata"]["name"], each["metadata"]["namespace"], propagation_policy="Background")
    return took


if __name__ == "__main__":
    main()
