"""Up to which rate this host can be trusted with: the whole harness on a simulated system, at rising rates.

    python -m mlperf_exp.selftest [--bound-ms 5] [--seconds 2] [--out FILE]

The simulated system answers after exact times, so that all that LoadGen counts beyond them was added by this program
and this host. Rates rise until the 99th percentile of that exceeds the bound, with and without token latencies; the
highest rate within it is what to trust. Prints JSON, in less than a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.bench import measure, start
from mlperf_exp.errors import ExperimentError, RunFailed
from mlperf_exp.files import write_json
from mlperf_exp.inputs import load
from mlperf_exp.messages import Plan
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress

RATES = (1_000, 2_000, 5_000, 10_000, 20_000, 40_000)
_TTFT_MS, _TPOT_MS, _TOKENS = 20.0, 1.0, 16
_LATENCY_MS = _TTFT_MS + _TPOT_MS * (_TOKENS - 1)
_BUDGET_S = 50.0  # no further rate is begun after so long


def selftest(bound_ms: float, seconds: float, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Step the rate up until the harness adds more than ``bound_ms`` at p99; what was measured, as JSON values.

    Raises:
        RunFailed: a test broke.
    """
    began = time.monotonic()
    answer: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg(), "bound_ms": bound_ms}
    for mode, benchmark in (("tokens", "llama3_1-8b"), ("no_tokens", "null")):
        half = began + _BUDGET_S * (0.5 if mode == "tokens" else 1.0)
        steps = _steps(benchmark, bound_ms, seconds, rates, half)
        within = [step["target_qps"] for step in steps if step["within"]]
        answer[mode] = {"trusted_qps": max(within, default=None), "steps": steps}
    answer["seconds"] = time.monotonic() - began
    return answer


def _steps(
    benchmark: str, bound_ms: float, seconds: float, rates: Sequence[float], until: float
) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(benchmark, seconds, Path(folder))
        inputs = load(plan)
        with Progress(plan) as progress:
            system = start(plan, inputs, progress)
            try:
                for number, rate in enumerate((rates[0], *rates)):
                    if steps and (not steps[-1]["within"] or time.monotonic() > until):
                        break
                    rules = replace(plan.config.scenario, target_qps=float(rate))
                    at_rate = replace(plan, config=replace(plan.config, scenario=rules))
                    measured = measure(system, at_rate, inputs, progress)
                    if measured.failure:
                        raise RunFailed(measured.failure)
                    if number:  # the first warms up: what is done once would be all of the 99th percentile
                        steps.append(_step(rate, bound_ms, measured.metrics))
            finally:
                system.stop()
    return steps


def _plan(benchmark: str, seconds: float, folder: Path) -> Plan:
    words = [
        "model=llama3_tiny", f"model.benchmark={benchmark}", "backend=simulated", "backend.sigma=0",
        f"backend.ttft_ms={_TTFT_MS}", f"backend.tpot_ms={_TPOT_MS}", f"backend.output_tokens={_TOKENS}",
        "scenario=server", "scenario.mode=performance", f"scenario.min_duration_s={seconds}", "compliance=off",
        "division=open", "progress=false",
    ]  # fmt: skip
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        return make_plan(compose("config", words), folder)


def _step(rate: float, bound_ms: float, metrics: dict[str, float]) -> dict[str, Any]:
    added = metrics["latency_p99_ms"] - _LATENCY_MS
    kept = metrics.get("issue_delay_p99_ms")
    return {
        "target_qps": rate,
        "completed_per_second": metrics["samples_per_second"],
        "added_p99_ms": added,
        "issue_delay_p99_ms": kept,
        "loop_lag_p99_ms": metrics.get("loop_lag_p99_ms"),
        "client_thread_cores": metrics.get("client_thread_cores"),
        "errors": metrics["errors"],
        "within": added <= bound_ms and not metrics["errors"],
    }


def main() -> int:
    """The command line; exit status 0 where some rate can be trusted, 1 where none can."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.selftest", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bound-ms", type=float, default=5.0, help="what the harness may add at the 99th percentile")
    parser.add_argument("--seconds", type=float, default=2.0, help="the length of each step")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there, too")
    args = parser.parse_args()
    try:
        answer = selftest(args.bound_ms, args.seconds)
        if args.out:
            write_json(args.out, answer)
    except (ExperimentError, OSError) as error:
        print(f"mlperf_exp.selftest: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2))
    return 0 if answer["tokens"]["trusted_qps"] else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    cli.leave(status)
