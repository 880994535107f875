"""The framework over bare PyTorch on one NVIDIA GPU: ResNet-50, ResNet-101, BERT-Base and BERT-Large, random weights.

    python benchmarks/vision_gpu.py --out vision.json      # every bar, in about six minutes; at most --budget seconds
    python benchmarks/vision_gpu.py --models resnet50 --scenarios offline --kernels fused inductor --probe

Bare is the same network in a loop over one batch that already lies on the device, replayed as a CUDA graph: no copies,
no queries, no answers (for single stream, one sample with a synchronization each). The framework is the whole command
with the real LoadGen, right after it; the server's rate is a share of the framework's own offline rate. The weights are
seeded and calm, so that nothing overflows in half precision, and the logits are held against float32's.

Prints JSON, also after each step into ``--out``::

    {"gpu": {...}, "bars": {"resnet50 offline, img/s": {"measured": ..., "bar": ..., "kept": true}, ...},
     "models": {"resnet50": {"bare": {"fused": {"1024": {"per_second": ..., "p90_ms": ...}, ...}},
                             "offline": {"samples_per_second": ..., "latency_p90_ms": ..., "peak_memory_gib": ...},
                             "framework_over_bare": {"same_kernels": ..., "best_kernels": ...}}, ...},
     "left_out": [...], "wall_s": ...}

``--probe`` adds the time of each convolution by several kernels, and of each kernel of a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODELS = ("resnet50", "resnet101", "bert_base", "bert_large")
SCENARIOS = ("offline", "single_stream", "server")
STEPS = {  # what the bars need; other scenarios by --scenarios
    "resnet50": ("offline", "single_stream", "server"),
    "resnet101": ("offline",),
    "bert_base": ("offline", "single_stream"),
    "bert_large": ("offline",),
}


def bars(models: dict[str, Any]) -> dict[str, Any]:
    """Each bar with what was measured, null where it was not, and whether it is kept."""

    def of(model: str, *keys: str) -> float | None:
        value: Any = models.get(model)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    offline, server = of("resnet50", "offline", "samples_per_second"), of("resnet50", "server_0.85", "target_qps")
    good = (models.get("resnet50", {}).get("server_0.85") or {}).get("loadgen") == "VALID"
    rows: list[tuple[str, float | None, float, bool]] = [  # name, measured, bar, higher is better
        ("resnet50 offline, img/s", offline, 32_000, True),
        ("resnet50 offline over bare", of("resnet50", "framework_over_bare", "same_kernels"), 0.97, True),
        ("resnet50 single stream p90, ms", of("resnet50", "single_stream", "latency_p90_ms"), 0.8, False),
        ("resnet50 server rate over offline, p99 in 15 ms", server / offline if offline and server and good else None,
         0.849, True),
        ("resnet101 offline, img/s", of("resnet101", "offline", "samples_per_second"), 18_000, True),
        ("bert_base offline, seq/s", of("bert_base", "offline", "samples_per_second"), 12_000, True),
        ("bert_base single stream p90, ms", of("bert_base", "single_stream", "latency_p90_ms"), 2.0, False),
        ("bert_large offline, seq/s", of("bert_large", "offline", "samples_per_second"), 4_000, True),
    ]  # fmt: skip
    return {
        name: {"measured": value, "bar": bar,
               "kept": None if value is None else value >= bar if higher else value < bar}
        for name, value, bar, higher in rows
    }  # fmt: skip


def gpu() -> dict[str, Any]:
    """The card, as the driver names it."""
    query = "--query-gpu=name,memory.total,driver_version,clocks.sm,power.limit"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(
        zip(("name", "memory", "driver", "sm_clock", "power_limit"), map(str.strip, line.split(",")), strict=False)
    )


def framework(model: str, scenario: str, seconds: float, qps: float | None, options: argparse.Namespace) -> Any:
    """One run of the command; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [f"model={model}", "model.weights=dummy", f"hw={options.hw}", f"scenario={scenario}",
                 f"scenario.min_duration_s={seconds}", "tracking.enabled=false", "progress=false"]  # fmt: skip
        words += options.set
        if qps is not None:
            words.append(f"scenario.target_qps={qps}")
        if scenario == "offline":
            words.append("scenario.min_query_count=1")
        if scenario == "single_stream":  # LoadGen makes as many queries as this asks for
            words.append("scenario.expected_latency_ms=0.2")
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={run}", *words],
            capture_output=True, text=True, timeout=options.timeout, check=False,
        )  # fmt: skip
        if not (run / "result.json").exists():
            return {"error": (done.stderr or done.stdout)[-2000:]}
        result = json.loads((run / "result.json").read_text())
        log = (run / "run.log").read_text()[-3000:] if done.returncode and (run / "run.log").exists() else None
    metrics = result["metrics"]
    names = ("samples_per_second", "latency_mean_ms", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "queries",
             "errors", "duplicates", "peak_memory_gib", "prompt_tokens_mean", "issue_delay_p99_ms",
             "client_thread_cores", "gpu_sm_mhz_mean", "gpu_power_mean_w")  # fmt: skip
    logged = result["tests"].get("performance", {}).get("loadgen", {})
    return {
        "target_qps": qps,
        "status": result["run"]["status"],
        "error": result["run"]["error"],
        "loadgen": logged.get("result_validity"),
        **{name: metrics.get(name) for name in names},
        "phases": {name: round(value, 2) for name, value in result["phases"].items()},
        "engine": {k: v for k, v in result["plan"]["engine"].items() if k != "sizes"},
        "wall_s": time.perf_counter() - began,
        "warnings": result["verdict"]["warnings"],
        "log": log,
    }


def bare(model: str, kernels: str, options: argparse.Namespace) -> Any:
    """The loop without the framework, in a process of its own."""
    words = [sys.executable, __file__, "--bare-of", model, "--hw", options.hw, "--seconds", str(options.seconds)]
    words += ["--kernels", kernels] + (["--probe"] if options.probe else [])
    words += ["--set", *options.set] if options.set else []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=options.timeout, check=False)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {options.timeout:g} s"}
    except ValueError:
        return {"error": (done.stderr or done.stdout)[-3000:]}


def composed(model: str, options: argparse.Namespace, *words: str) -> Any:
    """A plan as the command would make it."""
    from hydra import compose, initialize_config_dir

    from mlperf_exp import cli
    from mlperf_exp.plan import make_plan

    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        overrides = [f"model={model}", "model.weights=dummy", f"hw={options.hw}", "scenario=offline", *options.set]
        return make_plan(compose("config", [*overrides, *words]), Path("run"))


def bare_of(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rates by batch size; on a processor too, for trying this file out."""
    import torch

    from mlperf_exp.inputs import _reader

    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "cpu"}
    base = composed(model, options)
    samples = _reader(base.config.model)(base).samples
    (kernels,) = options.kernels
    found |= rates(composed(model, options, f"backend.compile={kernels}"), samples, options)
    if options.probe and cuda and kernels == "fused" and "bert" not in model:
        found["convolutions"] = convolutions(base, samples)
    return found


def rates(plan: Any, samples: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of the largest batches and the latency of one sample."""
    import numpy as np
    import torch

    from mlperf_exp.sut.forward import build
    from mlperf_exp.sut.forward.executor import _batch

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    program = build.program(plan, None, samples)
    began = time.perf_counter()
    program.prepare(device)
    count = min(len(samples), 1024)
    program.load(range(count))
    largest = max(plan.engine["sizes"])
    packed = "bert" in plan.config.model.name
    sizes = [largest, largest // 4, plan.config.model.max_tokens if packed else 1]
    found: dict[str, Any] = {}
    for size in filter(None, dict.fromkeys(sizes)):
        batch = np.zeros(1, dtype=np.int64) if size == sizes[-1] else _batch(program, size, np.arange(count))
        hosts = [torch.zeros(b.shape, dtype=getattr(torch, b.dtype)) for b in program.inputs(size)]
        program.fill(batch, hosts)
        inputs = [host.to(device) for host in hosts]
        with torch.inference_mode():
            for _ in range(3):
                output = program.forward(*inputs)
        if size == largest:
            found["prepare_s"] = time.perf_counter() - began
            if not packed:
                found["against_float32"] = agreement(plan, program, inputs)
            if options.probe and cuda:
                found["kernels"] = kernels_of(program, inputs)
        if cuda:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph), torch.inference_mode():
                output = program.forward(*inputs)
            step = graph.replay
        else:
            step = torch.inference_mode()(lambda inputs=inputs: program.forward(*inputs))
        step()
        times = []
        # The largest for as long as the framework's run: a card at its power limit is faster in its first seconds.
        until = time.perf_counter() + (options.seconds if size == largest else min(3.0, options.seconds / 2))
        each = 1 if size == sizes[-1] or not cuda else 5
        while time.perf_counter() < until or len(times) < 3:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(each):
                step()
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / each)
        median = float(np.median(times)) if size != largest else float(np.mean(times))
        found[str(size)] = {"samples": len(batch), "per_second": len(batch) / median, "batch_ms": median * 1e3,
                            "p90_ms": float(np.percentile(times, 90)) * 1e3}  # fmt: skip
        del output
    if cuda:
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def agreement(plan: Any, program: Any, inputs: Any) -> dict[str, float]:
    """How far the logits lie from the plain network's in float32, and whether any is no number."""
    import torch

    from mlperf_exp.sut.forward.images import ImageProgram

    reference = ImageProgram(plan.config.model, program._network, program._images, "float32", _none())
    reference.prepare(inputs[0].device)
    few = inputs[0][:16]
    with torch.inference_mode():
        theirs = reference._ready(reference._normalize(few)).float()
        full = program._ready(program._normalize(inputs[0])).float()
    return {
        "largest_difference": float((full[: len(few)] - theirs).abs().max()),
        "largest_logit": float(theirs.abs().max()),
        "no_numbers": int((~full.isfinite()).sum()),
    }


def _none() -> Any:
    from mlperf_exp.config import Compile

    return Compile.none


def kernels_of(program: Any, inputs: Any) -> list[list[Any]]:
    """The longest kernels of one batch: name, calls, milliseconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler, torch.inference_mode():
        program.forward(*inputs)
        torch.cuda.synchronize()
    rows = [(e.key[:110], e.count, e.self_device_time_total / 1e3) for e in profiler.key_averages()]
    rows = sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
    return [[name, count, round(ms, 3)] for name, count, ms in rows[:22]]


def convolutions(plan: Any, samples: Any) -> list[dict[str, Any]]:
    """Each distinct fused convolution: microseconds by kind of kernel, and what it moves and computes."""
    import torch
    from torch.nn import functional

    from mlperf_exp.sut.forward import build
    from mlperf_exp.sut.forward.fuse import FusedConv

    program: Any = build.program(plan, None, samples)
    program.prepare("cuda")
    program.load(range(64))
    size = 512
    seen: dict[Any, dict[str, Any]] = {}

    def timed(call: Any) -> float | str:
        try:
            for _ in range(3):
                call()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10):
                call()
            end.record()
            torch.cuda.synchronize()
            return round(begin.elapsed_time(end) * 100, 1)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:120]

    def look(module: Any, arguments: Any, output: Any) -> None:
        x, other = arguments[0], arguments[1] if len(arguments) > 1 else None
        weight = module.weight
        key = (tuple(x.shape), tuple(weight.shape), tuple(module.stride), other is not None)
        if key in seen:
            seen[key]["calls"] += 1
            return
        shape = (module.bias, list(module.stride), list(module.padding), list(module.dilation), module.groups)

        def apart() -> Any:
            y = functional.conv2d(x, weight, *shape)
            return torch.relu_(y if other is None else y.add_(other))

        flops = 2 * output.numel() * weight[0].numel()
        moved = 2 * (x.numel() + output.numel() * (1 if other is None else 2) + weight.numel())
        row = {"in": list(x.shape), "weight": list(weight.shape), "stride": module.stride[0],
               "add": other is not None, "calls": 1, "gflop": flops / 1e9, "gb": moved / 1e9,
               "fused_us": timed(lambda: module(*arguments)), "apart_us": timed(apart),
               "plain_us": timed(lambda: functional.conv2d(x, weight, None, *shape[1:]))}  # fmt: skip
        if weight.shape[2:] == (1, 1) and module.stride[0] == 1:
            flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            matrix = weight.flatten(1).t()
            row["gemm_relu_us"] = timed(lambda: torch._addmm_activation(module.bias, flat, matrix))
            row["gemm_us"] = timed(lambda: torch.addmm(module.bias, flat, matrix))
        seen[key] = row

    for module in program._ready.modules():
        if isinstance(module, FusedConv | torch.nn.Conv2d):
            module.register_forward_hook(look) if isinstance(module, FusedConv) else None
    pixels = torch.randint(0, 256, (size, program._side, program._side, 3), dtype=torch.uint8, device="cuda")
    with torch.inference_mode():
        program.forward(pixels)
    rows = list(seen.values())
    first = rows[0]
    x = torch.zeros(size, 8, program._side, program._side, dtype=torch.float16, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    for channels in (3, 4, 8):
        part = x[:, :channels].contiguous(memory_format=torch.channels_last)
        weight = torch.zeros(64, channels, 7, 7, dtype=torch.float16, device="cuda")
        weight = weight.to(memory_format=torch.channels_last)
        bias = torch.zeros(64, dtype=torch.float16, device="cuda")
        first[f"channels_{channels}_us"] = timed(
            lambda p=part, w=weight, b=bias: torch.cudnn_convolution_relu(p, w, b, [2, 2], [3, 3], [1, 1], 1)
        )
    return rows


def rate_of(sides: dict[str, Any], kernels: str | None) -> float:
    """The best bare rate of one kind of kernels, or of all."""
    chosen = [sides[kernels]] if kernels in sides else [s for s in sides.values() if isinstance(s, dict)]
    found = [
        row["per_second"] for side in chosen for row in side.values() if isinstance(row, dict) and "per_second" in row
    ]
    return max(found, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--scenarios", nargs="*", choices=SCENARIOS, help="those of the bars if left out")
    parser.add_argument("--kernels", nargs="+", default=["fused"], help="of the bare loops of ResNets; also inductor")
    parser.add_argument("--hw", default="h200")
    parser.add_argument("--seconds", type=float, default=8, help="of load in each run")
    parser.add_argument("--server-shares", type=float, nargs="+", default=[0.85], help="of the offline rate")
    parser.add_argument("--budget", type=float, default=460, help="seconds; what would begin later is left out")
    parser.add_argument("--timeout", type=float, default=75, help="seconds of one step")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run, such as backend.max_batch=512")
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--bare-only", action="store_true")
    parser.add_argument("--no-bare", action="store_true")
    parser.add_argument(
        "--rates", type=float, nargs="+", help="offline target rates by model where there is no bare loop"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bare-of", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_of:
        print(json.dumps(bare_of(options.bare_of, options)))
        return
    began = time.perf_counter()
    report: dict[str, Any] = {
        "gpu": gpu(), "cpus": os.cpu_count(), "load": os.getloadavg(), "set": options.set, "bars": {}, "models": {},
        "left_out": [],
    }  # fmt: skip

    def keep() -> None:
        report["wall_s"] = time.perf_counter() - began
        report["bars"] = bars(report["models"])
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1))

    def late(what: str) -> bool:
        if time.perf_counter() - began < options.budget:
            return False
        report["left_out"].append(what)
        return True

    for place, model in enumerate(options.models):
        entry: dict[str, Any] = {}
        report["models"][model] = entry
        for kernels in [] if options.no_bare else ["fused"] if "bert" in model else options.kernels:
            if not late(f"{model} bare {kernels}"):
                entry.setdefault("bare", {})[kernels] = bare(model, kernels, options)
                keep()
        if options.bare_only:
            continue
        rate = options.rates[place] if options.rates else rate_of(entry.get("bare", {}), None) or 1000.0
        for scenario in STEPS[model] if options.scenarios is None else options.scenarios:
            for share in options.server_shares if scenario == "server" else [None]:
                name = scenario if share is None else f"{scenario}_{share:g}"
                if late(f"{model} {name}"):
                    continue
                offline = (entry.get("offline") or {}).get("samples_per_second") or rate
                qps = None if scenario == "single_stream" else rate if share is None else share * offline
                try:
                    entry[name] = framework(model, scenario, options.seconds, qps, options)
                except subprocess.TimeoutExpired:
                    entry[name] = {"error": f"took longer than {options.timeout:g} s"}
                keep()
        offline = (entry.get("offline") or {}).get("samples_per_second")
        if offline and not options.no_bare:
            own = (entry["offline"].get("engine") or {}).get("compile")
            entry["framework_over_bare"] = {
                "same_kernels": offline / (rate_of(entry["bare"], own) or float("nan")),
                "best_kernels": offline / (rate_of(entry["bare"], None) or float("nan")),
            }
        keep()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
