"""What the torch backend and LoadGen's driver take for themselves, with a network that takes no time.

    python benchmarks/torch_dispatch.py [--samples 1000000] [--seconds 3] [--repeats 3]

The program copies its batch and answers at once, so that what is left is the way of a query: LoadGen's call, the
record, the batch, the answer. Beside it stands LoadGen alone with a system in Python that answers inside the call.
Prints JSON, medians over the repeats: nanoseconds a sample offline (all, and until the first batch begins, when a GPU
would wait), and the latencies of a single stream in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np
import torch
from hydra import compose, initialize_config_dir

from mlperf_exp import bench, cli, loadgen
from mlperf_exp.measure import read_detail_log
from mlperf_exp.messages import Plan
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.forward import build
from mlperf_exp.sut.forward.program import Buffer
from mlperf_exp.sut.torch import Torch

SAMPLES = 1024


class _Nothing:
    """A program whose answers are its samples' numbers."""

    began: int | None = None

    def lengths(self, samples: Any) -> Any:
        return np.ones(len(samples), dtype=np.int64)

    def load(self, _samples: Sequence[int]) -> None:
        _Nothing.began = None

    def most(self, size: int) -> int:
        return size

    def inputs(self, size: int) -> tuple[Buffer, ...]:
        return (Buffer((size,), "int64"),)

    def output(self, size: int) -> Buffer:
        return Buffer((size,), "int32")

    def fill(self, samples: Any, buffers: Any) -> None:
        _Nothing.began = _Nothing.began or time.perf_counter_ns()
        buffers[0][: len(samples)] = torch.from_numpy(samples)

    def send(self, *_: Any) -> None:
        raise AssertionError("there is no device")

    def prepare(self, _device: Any) -> None:
        pass

    def forward(self, *inputs: Any) -> Any:
        return inputs[0].to(torch.int32)

    def answers(self, samples: Any, output: Any) -> Any:
        return output, np.arange(len(samples) + 1, dtype=np.int64) * 4


def planned(folder: Path, *words: str) -> Plan:
    base = ["model=resnet50", "model.weights=dummy", "hw=cpu", "scenario.mode=performance", "progress=false"]
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        return make_plan(compose("config", [*base, *words]), folder)


def framework(scenario: str, words: list[str]) -> dict[str, float]:
    """One test of the backend through the real LoadGen."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(Path(folder), f"scenario={scenario}", *words)
        system = Torch(plan, None)
        system.start(range(SAMPLES))
        try:
            outcome = loadgen.run_test(plan, "performance", system, SAMPLES, Path(folder), lambda _: None)
        finally:
            system.stop()
        assert outcome.failure is None, outcome.failure
        return figures(Path(folder), outcome.records.issued, outcome.records.issued_ns[0])


def figures(folder: Path, queries: int, issued_ns: int | None = None) -> dict[str, float]:
    logged = read_detail_log(folder)
    found = {"queries": float(queries)}
    if logged["effective_scenario"] == "Offline":
        found["ns_a_sample"] = 1e9 / logged["result_samples_per_second"]
        if _Nothing.began and issued_ns:
            found["ns_a_sample_before_the_first_batch"] = max(0, _Nothing.began - issued_ns) / queries
    else:
        for percentile in ("50.00", "90.00", "99.00"):
            found[f"p{percentile[:2]}_us"] = logged[f"result_{percentile}_percentile_latency_ns"] / 1e3
    return found


def alone(scenario: str, words: list[str]) -> dict[str, float]:
    """LoadGen with a system that answers inside its call."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(Path(folder), f"scenario={scenario}", *words)
        chosen, _ = loadgen.settings(plan, "performance", SAMPLES)
        answer = np.zeros(1, dtype=np.int32)
        count = 0

        def issue(responses: list[int], _indices: list[int]) -> None:
            nonlocal count
            count += len(responses)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(r, answer.ctypes.data, 4) for r in responses])

        output, logs = lg.LogOutputSettings(), lg.LogSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs.log_output, logs.enable_trace = output, False
        sut = lg.ConstructFastSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(sut, qsl, chosen, logs, f"{folder}/audit.config")
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
        return figures(Path(folder), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cli.register()
    build.program = lambda *_: _Nothing()
    torch.set_num_threads(1)
    sys.setswitchinterval(bench._SWITCH_INTERVAL_S)
    kinds = {
        "offline": ["scenario.min_duration_s=0", f"scenario.min_query_count={options.samples}",
                    "backend.max_batch=1024"],
        "single_stream": [f"scenario.min_duration_s={options.seconds}", "scenario.expected_latency_ms=0.01"],
    }  # fmt: skip
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for scenario, words in kinds.items():
            runs.setdefault(f"{scenario} framework", []).append(framework(scenario, words))
            runs.setdefault(f"{scenario} alone", []).append(alone(scenario, words))
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        for name, rows in runs.items()
    }
    print(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg(), "medians": medians}, indent=2))


if __name__ == "__main__":
    main()
