"""The framework over bare PyTorch on a processor: ResNet-50 offline with random weights, in pairs one after the other.

    python benchmarks/vision_cpu.py [--pairs 4] [--images 256] [--model resnet50] [--threads 2]

Bare is the same network with the same kernels in a loop over one batch that lies in memory: no queries, no answers.
Each of its processes tries every size of ``--sizes`` and its best counts, once with the C library's memory as it is and
once kept, as the backend keeps it (``mlperf_exp/sut/forward/memory.py``). The framework is the whole command with the
real LoadGen, its telemetry and its own choice of batch. Prints JSON: medians, every pair, and beside the wall times'
ratio that of the processor seconds an image, which other work on the machine changes less. Bar: at least 0.95.
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


def framework(options: argparse.Namespace) -> dict[str, Any]:
    """One run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={run}", f"model={options.model}",
            "model.weights=dummy", "hw=cpu", "scenario=offline", "scenario.mode=performance", "dataset.samples=64",
            f"scenario.min_query_count={options.images}", "scenario.min_duration_s=0",
            f"backend.threads={options.threads}", "tracking.enabled=false", "progress=false",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        result = json.loads((run / "result.json").read_text())
    metrics = result["metrics"]
    rate = metrics["samples_per_second"]
    return {
        "per_second": rate,
        "cpu_s_an_image": metrics["client_cpu_cores"] / rate,
        "queries": metrics["queries"],
        "peak_memory_gib": metrics["peak_memory_gib"],
        "errors": metrics["errors"],
    }


def bare(options: argparse.Namespace, kept: bool) -> dict[str, Any]:
    """The loop, in a process of its own."""
    command = [
        sys.executable, __file__, "--bare", "kept" if kept else "as_is", "--images", str(options.images), "--model",
        options.model, "--threads", str(options.threads), "--sizes", *map(str, options.sizes),
    ]  # fmt: skip
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def loop(options: argparse.Namespace) -> dict[str, Any]:
    """Images per second and processor seconds an image of the best size."""
    import numpy as np
    import torch
    from hydra import compose, initialize_config_dir

    from mlperf_exp import cli
    from mlperf_exp.kinds.images import synthetic
    from mlperf_exp.plan import make_plan
    from mlperf_exp.sut.forward import build
    from mlperf_exp.sut.forward.memory import keep_freed_memory

    if options.bare == "kept":
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        words = [f"model={options.model}", "model.weights=dummy", "hw=cpu", "scenario=offline"]
        plan = make_plan(compose("config", words), Path("run"))
    program: Any = build.program(plan, None, synthetic(plan.config.model, 64, 1))
    program.load(range(64))
    program.prepare("cpu")
    found: dict[str, Any] = {}
    for size in options.sizes:
        (batch,) = [torch.zeros(b.shape, dtype=torch.uint8) for b in program.inputs(size)]
        program.fill(np.arange(size) % 64, [batch])
        with torch.inference_mode():
            program.forward(batch)
            times, began = [], time.process_time()
            for _ in range(max(2, options.images // len(options.sizes) // size)):
                start = time.perf_counter()
                program.forward(batch)
                times.append(time.perf_counter() - start)
        spent = (time.process_time() - began) / len(times) / size
        found[str(size)] = {"per_second": size / statistics.median(times), "cpu_s_an_image": spent}
    best = max(found, key=lambda size: found[size]["per_second"])
    return {"size": int(best), **found[best], "sizes": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--images", type=int, default=256, help="of one side of a pair")
    parser.add_argument("--model", default="resnet50", choices=("resnet50", "resnet101"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--bare", choices=("kept", "as_is"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(loop(options)))
        return
    pairs = [
        {"bare": bare(options, kept=False), "bare_kept": bare(options, kept=True), "framework": framework(options)}
        for _ in range(options.pairs)
    ]

    def median(side: str, key: str) -> float:
        return statistics.median(pair[side][key] for pair in pairs)

    def over(side: str) -> dict[str, float]:
        return {
            "wall": statistics.median(pair["framework"]["per_second"] / pair[side]["per_second"] for pair in pairs),
            "processor": statistics.median(
                pair[side]["cpu_s_an_image"] / pair["framework"]["cpu_s_an_image"] for pair in pairs
            ),
        }

    sides = ("bare", "bare_kept", "framework")
    report = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "medians": {side: {key: median(side, key) for key in ("per_second", "cpu_s_an_image")} for side in sides},
        "framework_over_bare": over("bare"),
        "framework_over_bare_kept": over("bare_kept"),
        "bar": 0.95,
        "pairs": pairs,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
