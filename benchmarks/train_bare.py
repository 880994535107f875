"""What Lightning costs: the whole training command beside a bare PyTorch loop on the same model and settings.

    python benchmarks/train_bare.py [--network resnet_tiny --batch 64 --steps 60 --repeats 5 --hw cpu]

Random images, so that neither waits for data; runs of the two alternate, each in a process of its own. ``--ranks 2``
adds the framework on so many GPUs of one host at the same batch for each, and on each of the others alone: cards at
their power limit differ, and the slowest sets the pace. Prints JSON: the samples/s of each run, their medians, and the
ratio (bars: 0.98 of bare; two GPUs 1.9 times one; ResNet-50 on one H200 6,800 img/s).
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

SKIPPED = 10  # first steps: kernels are chosen and caches filled


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="resnet_tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hw", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=1, help="GPUs of one more run of the framework")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.bare:
        print(bare(options))
        return
    rates: dict[str, list[float]] = {"bare": [], "framework": []}
    for number in range(options.repeats):
        order = ("bare", "framework") if number % 2 == 0 else ("framework", "bare")
        for name in order:
            rates[name].append(alone(options) if name == "bare" else framework(options, 1))
        for card in range(1, options.ranks):
            rates.setdefault(f"framework_card_{card}", []).append(framework(options, 1, card))
        if options.ranks > 1:
            rates.setdefault(f"framework_{options.ranks}", []).append(framework(options, options.ranks))
        if options.out:
            options.out.write_text(json.dumps(rates))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = [a / b for a, b in zip(rates["framework"], rates["bare"], strict=True)]
    report = {
        **{key: getattr(options, key) for key in ("network", "batch", "steps", "hw")},
        "samples_per_second": rates,
        "medians": medians,
        "ratio": medians["framework"] / medians["bare"],
        "pairs": pairs,
    }
    if options.ranks > 1:
        together = medians[f"framework_{options.ranks}"]
        report["ranks_over_one"] = together / medians["framework"]
        alone_each = [medians["framework"], *(medians[f"framework_card_{card}"] for card in range(1, options.ranks))]
        report["ranks_over_slowest_card"] = together / min(alone_each)
    if options.out:
        options.out.write_text(json.dumps(report))
    print(json.dumps(report))


def framework(options: argparse.Namespace, ranks: int, card: int = 0) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "model=resnet50" if options.network == "resnet50" else f"model={options.network}",
            "scenario=train", f"hw={options.hw}", "dataset=synthetic_images", "division=open", "progress=false",
            f"scenario.steps={options.steps}", f"scenario.global_batch_size={options.batch * ranks}",
            "scenario.optimizer=sgd",
            f"backend.micro_batch={options.batch}", f"backend.log_every_steps={SKIPPED}", "tracking.enabled=false",
            "telemetry.enabled=false", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        if options.hw != "cpu":
            words.append(f"hw.gpus_per_node={ranks}")
        if options.threads:
            words.append(f"backend.threads={options.threads}")
        cards = {"CUDA_VISIBLE_DEVICES": str(card)} if options.hw != "cpu" and ranks == 1 else {}
        done = subprocess.run(
            [sys.executable, "-m", "mlperf_exp", *words],
            capture_output=True, text=True, check=False, env=os.environ | cards,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-3000:] or done.stdout[-3000:])
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
    return float(result["metrics"]["train_samples_per_second"])


def alone(options: argparse.Namespace) -> float:
    words = [f"--{key}={getattr(options, key)}" for key in ("network", "batch", "steps", "hw")]
    words += [f"--threads={options.threads}"] if options.threads else []
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} if options.hw == "cpu" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--bare", *words],
        check=True, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    return float(done.stdout)


def bare(options: argparse.Namespace) -> float:
    """The loop that anybody would write, with the same kernels: no Lightning, no supervisor, no log."""
    import torch
    from torch.nn import functional

    from mlperf_exp.networks import build

    on_gpu = options.hw != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        torch.set_num_threads(options.threads or os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)
    side, classes = (32, 10) if options.network == "resnet_tiny" else (224, 1000)
    network = build(options.network, classes).to(device, memory_format=torch.channels_last).train()
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1) * 255
    images = torch.randint(0, 256, (options.batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, classes, (options.batch,), device=device)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batch = ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        return functional.cross_entropy(network(batch), labels, label_smoothing=0.1)

    compute = torch.compile(loss_of) if on_gpu else loss_of
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-5}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9, fused=on_gpu)
    began = 0.0
    for step in range(options.steps):
        if step == SKIPPED:
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            loss = compute(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if on_gpu:
        torch.cuda.synchronize()
    return options.batch * (options.steps - SKIPPED) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
