"""Llama 3.1 8B on one GPU: bare vLLM and the framework one after the other, offline, server and interactive.

    python benchmarks/h200_llama.py --out llama.json                    # under nine minutes
    python benchmarks/h200_llama.py --weights bf16 --parts bare offline
    python benchmarks/h200_llama.py --parts bare --set backend.engine.max_num_seqs=512     # one setting, bare

Prompts are random token ids with log-normal lengths (mean 785, sigma 0.53, clipped to 32..2540, then 781 in the mean,
whatever their number): CNN/DailyMail's validation articles under MLPerf's prompt have about 780 in the mean and at most
2540. 128 tokens are generated. ``--weights static``: an fp8 checkpoint with static scales and random weights
(fp8_checkpoint.py); ``online``: bf16 quantized by vLLM as it loads, activations scaled at each step; ``bf16``. No
weights are real: these are speeds, and no run is valid.

Bare is ``vllm.LLM.generate`` over the same prompts with the same engine arguments. The framework is the whole command:
a sweep of its load points, on one engine start for each kind of settings (``conf/tuning/``), LoadGen's own rates and
verdicts, MLPerf's latency bounds, and ``--seconds`` of load instead of 600: of a short offline run the tail (the last
answers, as the batch empties) is a larger part.

Prints JSON, also after each step into ``--out``. Bars (one H200): framework over bare 0.99; tokens/s offline 8,255,
server 8,114, interactive 6,684, bf16 offline 5,300; start on a warm compile cache 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bare_vllm import generate
from points import sweep

BARS = {
    "framework over bare": 0.99, "offline, tokens/s": 8255, "server, tokens/s": 8114, "interactive, tokens/s": 6684,
    "bf16 offline, tokens/s": 5300, "start_s": 30.0,
}  # fmt: skip
TUNING = "backend.engine.quantization=fp8", "backend.engine.kv_cache_dtype=fp8"
LAYER_PARAMETERS, HEAD_PARAMETERS, LAYERS, WIDTH = 6_979_321_856, 525_336_576, 32, 4096
_PROFILED = 1200  # prompts
_BEGAN = time.perf_counter()


def model_words(options: argparse.Namespace) -> list[str]:
    """The overrides that choose the weights and the engine."""
    words = ["model=llama3_8b", f"hw={options.hw}", "dataset=synthetic", f"dataset.samples={count(options) // 2}",
             "backend.gpu_memory_utilization=0.92"]  # fmt: skip
    if options.weights == "static":
        return [*words, f"model.path={options.checkpoint.absolute()}", *TUNING, *options.set]
    return [*words, "model.weights=dummy", *(TUNING if options.weights == "online" else ()), *options.set]


def planned(options: argparse.Namespace) -> tuple[Any, Any]:
    """The plan and the prompts that the command would use."""
    from hydra import compose, initialize_config_dir

    from mlperf_exp import cli
    from mlperf_exp.inputs import load
    from mlperf_exp.plan import make_plan

    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        words = [*model_words(options), "scenario=offline", "scenario.mode=performance"]
        plan = make_plan(compose("config", words), Path("run"))
    return plan, load(plan)


def bare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """``LLM.generate`` on so many of the same prompts as the framework's offline run has."""
    plan, inputs = planned(options)
    prompts = [list(inputs.samples[i % len(inputs.samples)].tokens) for i in range(count(options))]
    engine = plan.engine
    if options.profile:  # a dozen steps from the middle of the load
        engine = engine | {
            "profiler_config": {"profiler": "torch", "torch_profiler_dir": str(folder / "profile"),
                                "torch_profiler_with_stack": False, "ignore_frontend": True,
                                "delay_iterations": 60, "max_iterations": 12}
        }  # fmt: skip
    answer = generate(folder, inputs.model, engine, prompts, repeats=options.repeats,
                      profiled=_PROFILED if options.profile else 0, timeout=left(options))  # fmt: skip
    if options.profile and "error" not in answer:
        answer["kernels"] = kernels(folder / "profile")
    return answer | {"engine": plan.engine, "queries": count(options)}


def kernels(folder: Path) -> list[list[str]]:
    """The first rows of the profiler's table: kernel, share of the device's time, time, calls."""
    table = next(folder.glob("*profiler_out*.txt"), None)
    lines = table.read_text().splitlines() if table else []
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip() and not line.startswith("-")]
    return [[row[0][:100], *row[-4:]] for row in cells[:45]]


def framework(options: argparse.Namespace, folder: Path, points: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """The whole command at these points; with the FLOP/s that the answers took."""
    rows = sweep(folder, points, model_words(options), seconds=options.seconds, offline=count(options),
                 timeout=left(options))  # fmt: skip
    for row in rows:
        if row.get("samples_per_second"):
            work = flops(row["prompt_tokens_mean"], row["output_tokens_mean"])
            row["tflop_s"] = work * row["samples_per_second"] / 1e12
    return rows


def left(options: argparse.Namespace) -> float:
    """Seconds of the whole that are left; what is finished by then is reported."""
    return max(options.within - time.perf_counter() + _BEGAN, 1.0)


def count(options: argparse.Namespace) -> int:
    """Samples of the offline load: two copies of the data set, as LoadGen sends whole ones."""
    return 2 * (int(options.rate * options.seconds) // 2)


def flops(prompt: float, output: float) -> float:
    """Of one sample: two a parameter and token (the output layer for generated tokens only), and attention."""
    length = prompt + output
    return 2 * LAYER_PARAMETERS * length + 2 * HEAD_PARAMETERS * output + 2 * LAYERS * WIDTH * length**2


def ceiling() -> dict[str, Any]:
    """The layers' products alone (products.py), fp8 and bf16: what the card's power leaves of their rate."""
    command = [sys.executable, str(Path(__file__).with_name("products.py")), "--kernels", "cutlass", "bf16",
               "--seconds", "5"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-1000:]}


class HostCpu:
    """The share of the host's cores that was busy since it was made."""

    def __init__(self) -> None:
        self._first = self._read()

    def cores(self) -> float:
        """Cores busy on average."""
        busy, total = (b - a for a, b in zip(self._first, self._read(), strict=True))
        return busy / max(total, 1) * (os.cpu_count() or 1)

    def _read(self) -> tuple[int, int]:
        values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values) - values[3] - values[4], sum(values)


def bars(report: dict[str, Any], weights: str) -> dict[str, Any]:
    """Each bar with what was measured, and whether it is kept; null where it was not measured."""
    rows = [row for row in report.get("framework", []) if "error" not in row or row["error"] is None]

    def best(scenario: str) -> float | None:
        good = [r["tokens_per_second"] for r in rows if r["scenario"] == scenario and r["loadgen"] == "VALID"]
        return max(good, default=None)

    offline = next((r["tokens_per_second"] for r in rows if r["scenario"] == "offline"), None)
    theirs = report.get("bare", {}).get("tokens_per_second")
    quantized = weights != "bf16"
    start = next((r["start_s"] for r in rows if r.get("start_s")), None)
    measured = {
        "framework over bare": offline / theirs if offline and theirs else None,
        "offline, tokens/s": offline if quantized else None,
        "server, tokens/s": best("server") if quantized else None,
        "interactive, tokens/s": best("interactive") if quantized else None,
        "bf16 offline, tokens/s": None if quantized else offline,
        "start_s": start,
    }
    return {
        name: {"measured": value, "bar": BARS[name],
               "kept": None if value is None else value < BARS[name] if name == "start_s" else value >= BARS[name]}
        for name, value in measured.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", choices=("static", "online", "bf16"), default="static")
    parser.add_argument("--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "llama3_8b-fp8-static")
    parser.add_argument("--parts", nargs="+", default=["ceiling", "bare", "offline", "server", "interactive"])
    parser.add_argument("--hw", default="h200")
    parser.add_argument("--rate", type=float, default=60.0, help="samples/s that sizes the offline load")
    parser.add_argument("--seconds", type=float, default=45.0, help="of load at each point")
    parser.add_argument("--server", type=float, nargs="+", default=[1.0], help="shares of bare's rate")
    parser.add_argument("--interactive", type=float, nargs="+", default=[0.84], help="likewise")
    parser.add_argument("--repeats", type=int, default=1, help="of the bare run, on one engine start")
    parser.add_argument("--profile", action="store_true", help="the longest kernels of the bare engine")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for both sides")
    parser.add_argument("--within", type=float, default=530, help="seconds of the whole; later points are left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"vllm": version("vllm"), "torch": version("torch"), "weights": options.weights,
                              "set": options.set, "seconds": options.seconds, "bars": {}}  # fmt: skip

    def keep() -> None:
        report["wall_s"] = time.perf_counter() - _BEGAN
        report["bars"] = bars(report, options.weights)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1))

    if "ceiling" in options.parts:
        report["ceiling"] = ceiling()
    if options.weights == "static" and not (options.checkpoint / "config.json").exists():
        maker = Path(__file__).with_name("fp8_checkpoint.py")
        subprocess.run([sys.executable, str(maker), str(options.checkpoint)], check=True, stdout=sys.stderr)
        report["checkpoint_s"] = time.perf_counter() - _BEGAN
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if "bare" in options.parts:
                report["bare"] = bare(options, folder)
                keep()
            rate = report.get("bare", {}).get("tokens_per_second", 128 * options.rate) / 128
            points = [("offline", rate)] if "offline" in options.parts else []
            for scenario in ("server", "interactive"):
                if scenario in options.parts:
                    points += [(scenario, round(share * rate, 2)) for share in getattr(options, scenario)]
            if points:
                cpu = HostCpu()
                report["framework"] = framework(options, folder, points)
                report["host_cores_busy"] = cpu.cores()
        except subprocess.TimeoutExpired as error:
            report["error"] = str(error)[:300]
    keep()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
