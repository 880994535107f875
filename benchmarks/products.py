"""The matrix products of Llama 3.1 8B's layers alone, for seconds on end: what the card's power leaves of its rate.

    python benchmarks/products.py --tokens 1024 4096 --seconds 8

All 32 layers' weights in turn (7 GB in fp8), so many tokens a step, nothing between the products: attention, norms,
quantization and sampling only come on top. ``cublas`` is PyTorch's ``_scaled_mm`` (bf16: ``matmul``), ``cutlass``
vLLM's own. ``normal``: weights and activations as random as a model's; ``zeros`` switch no transistor, which shows what
of the rate is power's. A burst is the first 0.1 s after a pause.

Prints JSON: GB/s that a copy reads and writes, and a row each of TFLOP/s in a burst and sustained, W, MHz, J a TFLOP,
and tokens/s of the benchmark (785 tokens in, 128 out) if the layers' products were all there is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

SHAPES = (4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)  # (in, out): qkv, o, gate and up, down
LAYERS, LENGTH, OUTPUT = 32, 785 + 128, 128
FLOP = 2 * LAYERS * sum(k * n for k, n in SHAPES)  # of one token
_BURST_S, _WARM = 0.1, 3


def products(kernels: str, data: str, tokens: int) -> Callable[[], None]:
    """A call that launches one step's products."""
    import torch

    made = torch.zeros if data == "zeros" else torch.randn
    one = torch.ones((), device="cuda")
    scale = one.reshape(1, 1)

    def random(rows: int, columns: int, deviation: float) -> Any:
        values = made(rows, columns, device="cuda", dtype=torch.bfloat16)
        return values if kernels == "bf16" else (values * deviation).clamp(-448, 448).to(torch.float8_e4m3fn)

    inputs = {k: random(tokens, k, 50.0) for k in {k for k, _ in SHAPES}}
    weights = [(inputs[k], random(n, k, 90.0).t()) for _ in range(LAYERS) for k, n in SHAPES]

    def step() -> None:
        for x, w in weights:
            if kernels == "bf16":
                torch.matmul(x, w)
            elif kernels == "cublas":
                torch._scaled_mm(x, w, one, one, out_dtype=torch.bfloat16)
            else:
                ops.cutlass_scaled_mm(x, w, scale, scale, torch.bfloat16)

    if kernels == "cutlass":
        from vllm import _custom_ops as ops
    return step


def measure(kernels: str, data: str, tokens: int, seconds: float) -> dict[str, Any]:
    """One row."""
    import pynvml as nvml
    import torch

    card = nvml.nvmlDeviceGetHandleByIndex(0)
    step = products(kernels, data, tokens)
    for _ in range(_WARM):
        step()
    torch.cuda.synchronize()
    time.sleep(1)
    work = FLOP * tokens / 1e12
    began, steps, clocks, burst = time.perf_counter(), 0, [], 0.0
    joules, since, before = 0.0, 0.0, 0
    while (passed := time.perf_counter() - began) < seconds:
        step()
        torch.cuda.synchronize()
        steps += 1
        if not burst and time.perf_counter() - began > _BURST_S:
            burst = work * steps / (time.perf_counter() - began)
        if not since and passed > seconds / 3:  # the clocks have come down to what the power allows
            since, before, joules = time.perf_counter(), steps, nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
        if since:
            clocks.append(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM))
    passed = time.perf_counter() - since
    rate = work * (steps - before) / passed
    watts = (nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3 - joules) / passed
    return {
        "kernels": kernels, "data": data, "tokens": tokens, "burst_tflop_s": burst, "tflop_s": rate, "watts": watts,
        "mhz": sum(clocks) / len(clocks), "joules_per_tflop": watts / rate,
        "tokens_per_second_if_alone": rate * 1e12 / (FLOP * LENGTH) * OUTPUT,
    }  # fmt: skip


def main() -> None:
    import pynvml as nvml
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernels", nargs="+", default=["cutlass", "cublas"], choices=("cutlass", "cublas", "bf16"))
    parser.add_argument("--data", nargs="+", default=["normal"], choices=("normal", "zeros"))
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096])
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    nvml.nvmlInit()
    rows = []
    for kernels, data, tokens in itertools.product(options.kernels, options.data, options.tokens):
        rows.append(measure(kernels, data, tokens, options.seconds))
        torch.cuda.empty_cache()
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    began, copies = time.perf_counter(), 20
    for _ in range(copies):
        target.copy_(source)
    torch.cuda.synchronize()
    copied = 2 * copies * 2**31 / 1e9 / (time.perf_counter() - began)
    limit = nvml.nvmlDeviceGetEnforcedPowerLimit(nvml.nvmlDeviceGetHandleByIndex(0)) / 1e3
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "power_limit_w": limit, "torch": torch.__version__,
                      "copy_gb_s": copied, "rows": rows}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
