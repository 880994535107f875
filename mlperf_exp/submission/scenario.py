"""The round's rules on one result: ``.../results/SYSTEM/BENCHMARK/SCENARIO``, in readable words.

Stricter than MLCommons' checker, which takes runs that LoadGen itself calls INVALID or that had errors, and holds the
interactive scenario against the server's bounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.compliance.logs import ACCURACY, DETAIL, SUMMARY
from mlperf_exp.measure import read_detail_log
from mlperf_exp.submission.rules import (
    MAX_ACCURACY_LOG_BYTES,
    MEASUREMENTS,
    MIN_DURATION_MS,
    SEEDS,
    Benchmark,
)
from mlperf_exp.submission.sources import complete


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing against a package: where, what is wrong, and what to do."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.remedy}."


_AGAIN = "Run the scenario again"
_BUILD = "Build the package again"


def findings(folder: Path, where: str, benchmark: Benchmark, closed: bool) -> Iterator[Finding]:
    """Everything against one result; ``where`` names it in messages."""
    yield from _files(folder, where)
    yield from _measurements(folder, where)
    yield from _performance(folder / "performance" / "run_1", f"{where}/performance", benchmark, folder.name, closed)
    yield from _accuracy(folder / "accuracy", f"{where}/accuracy", benchmark, closed)
    if closed:
        for test in benchmark.tests:
            yield from _compliance(folder / test, f"{where}/{test}", test)


def _files(folder: Path, where: str) -> Iterator[Finding]:
    wanted = ("user.conf", "README.md", "measurements.json", f"performance/run_1/{SUMMARY}", f"accuracy/{SUMMARY}")
    for name in wanted:
        path = folder / name
        if not path.is_file():
            yield Finding(where, f"{name} is missing", _BUILD)
        elif not path.stat().st_size:
            yield Finding(where, f"{name} is empty", _BUILD)


def _measurements(folder: Path, where: str) -> Iterator[Finding]:
    path = folder / "measurements.json"
    if not path.is_file():
        return
    try:
        values = json.loads(path.read_text())
    except ValueError:
        yield Finding(where, "measurements.json is no JSON", _BUILD)
        return
    empty = [name for name in MEASUREMENTS if not isinstance(values, dict) or not values.get(name)]
    if empty:
        yield Finding(
            where,
            f"measurements.json says nothing on {', '.join(empty)}",
            "Fill it in (measurements: in the system's file)",
        )


def _log(folder: Path, where: str, mode: str) -> tuple[dict[str, Any], list[Finding]]:
    """A detail log, and what keeps it from being judged."""
    path = folder / DETAIL
    if not path.is_file():
        return {}, [Finding(where, f"{DETAIL} is missing", _AGAIN)]
    logged = read_detail_log(folder)
    if not complete(path, logged):
        return {}, [Finding(where, f"{DETAIL} is cut short: LoadGen's end is missing", _AGAIN)]
    if logged.get("effective_test_mode") != mode:
        return {}, [Finding(where, f"the log is of {logged.get('effective_test_mode')} and not of {mode}", _AGAIN)]
    wrong = [name for name, seed in SEEDS.items() if logged.get(f"effective_{name}") != seed]
    if wrong:
        problem = f"the log is of another round: {wrong[0]} is {logged.get(f'effective_{wrong[0]}')}"
        return {}, [Finding(where, problem, "Run it again with this round's LoadGen")]
    return logged, []


def _performance(folder: Path, where: str, benchmark: Benchmark, scenario: str, closed: bool) -> Iterator[Finding]:
    logged, broken = _log(folder, where, "PerformanceOnly")
    yield from broken
    if not logged:
        return
    ran = str(logged.get("effective_scenario")).replace(" ", "")
    if ran != {"Interactive": "Server"}.get(scenario, scenario):
        yield Finding(where, f"the log is of {ran}", f"Put it where it belongs, or run {scenario}")
        return
    if logged.get("result_validity") != "VALID":
        reasons = " ".join(" ".join(str(reason).split()) for reason in logged.get("result_invalid_reason", []))
        yield Finding(
            where, f"LoadGen calls the run {logged.get('result_validity')}: {reasons or 'see the summary'}", _AGAIN
        )
    if logged.get("num_errors"):
        yield Finding(
            where, f"LoadGen logged {logged['num_errors']} errors", "See mlperf_log_summary.txt, and run it again"
        )
    duration = logged.get("effective_min_duration_ms", 0)
    if duration < MIN_DURATION_MS:
        problem = f"a short run: min_duration is {duration / 1000:g} s, the round asks for {MIN_DURATION_MS / 1000:g} s"
        yield Finding(where, problem, "Leave out scenario.min_duration_s")
    drawn = logged.get("effective_performance_sample_count", 0)
    if drawn < benchmark.performance_samples:
        problem = f"the load drew from {drawn:,} samples, the round asks for {benchmark.performance_samples:,}"
        yield Finding(where, problem, "Leave out dataset.samples and scenario.samples")
    issued = logged.get("effective_samples_per_query", 0)
    if closed and ran == "Offline" and issued < benchmark.offline_samples:
        problem = f"the load was {issued:,} samples, the round asks for {benchmark.offline_samples:,}"
        yield Finding(where, problem, "Leave out scenario.min_query_count")
    if ran in ("Server", "SingleStream", "MultiStream") and not logged.get("early_stopping_met", True):
        yield Finding(where, "LoadGen's early stopping was not met", "Lower the load, or let it run longer")
    if benchmark.token_latencies and not logged.get("requested_use_token_latencies"):
        yield Finding(where, "LoadGen did not time tokens", "Run it with the benchmark's own name (model.benchmark)")
    yield from _bounds(logged, where, benchmark, scenario)


def _bounds(logged: dict[str, Any], where: str, benchmark: Benchmark, scenario: str) -> Iterator[Finding]:
    bounds = benchmark.bounds.get(scenario)
    if bounds is None:
        return
    for label, bound, key in (
        ("TTFT", bounds.ttft_ns, "result_first_token_99.00_percentile_latency_ns"),
        ("TPOT", bounds.tpot_ns, "result_time_per_output_token_99.00_percentile_ns"),
        ("latency", bounds.latency_ns, "result_99.00_percentile_latency_ns"),
    ):
        value = logged.get(key)
        if bound is None:
            continue
        if value is None:
            yield Finding(where, f"{label} p99 is not in the log", _AGAIN)
        elif value >= bound:
            problem = f"{label} p99 {value / 1e6:,.1f} ms is not below the {bound / 1e6:,.0f} ms of {scenario}"
            yield Finding(where, problem, "Run it again with a lower scenario.target_qps")


def _accuracy(folder: Path, where: str, benchmark: Benchmark, closed: bool) -> Iterator[Finding]:
    logged, broken = _log(folder, where, "AccuracyOnly")
    yield from broken
    total = logged.get("qsl_reported_total_count")
    if logged and total != benchmark.samples:
        yield Finding(
            where, f"it covers {total:,} samples, the data set has {benchmark.samples:,}", "Use the whole data set"
        )
    log = folder / ACCURACY
    if not log.is_file():
        yield Finding(where, f"{ACCURACY} is missing", _BUILD)
    elif log.stat().st_size > MAX_ACCURACY_LOG_BYTES:
        problem = f"{ACCURACY} has {log.stat().st_size:,} bytes, {MAX_ACCURACY_LOG_BYTES:,} are allowed"
        yield Finding(where, problem, _BUILD)
    text = folder / "accuracy.txt"
    if not text.is_file():
        yield Finding(where, "accuracy.txt is missing", "Measure the accuracy (scenario.mode=both)")
        return
    said = text.read_text(errors="replace")
    if not re.search(r"^hash=[0-9a-f]{64}$", said, re.MULTILINE):
        yield Finding(where, "accuracy.txt has no hash of the whole accuracy log", _BUILD)
    for metric in benchmark.metrics:
        found = re.search(metric.pattern, said, re.MULTILINE)
        if found is None:
            yield Finding(where, f"accuracy.txt does not say {metric.name}", "Score the run again")
        elif closed and float(found[1]) < metric.least:
            yield Finding(
                where,
                f"{metric.name} {found[1]} is below {metric.least:,.10g}",
                "Use the open division, or mend the model",
            )
        elif closed and metric.most is not None and float(found[1]) > metric.most:
            yield Finding(
                where,
                f"{metric.name} {found[1]} is above {metric.most:,.10g}",
                "Use the open division, or mend the model",
            )


def _compliance(folder: Path, where: str, test: str) -> Iterator[Finding]:
    if not folder.is_dir():
        yield Finding(where, f"{test} was not run, and the closed division asks for it", "Run with division=closed")
        return
    lines = {
        "TEST06": ("verify_accuracy.txt", ("EOS check pass: True", "Sample length check pass: True")),
        "TEST01": ("verify_performance.txt", ("TEST PASS",)),
        "TEST04": ("verify_performance.txt", ("TEST PASS",)),
    }
    name, wanted = lines[test]
    said = (folder / name).read_text().splitlines() if (folder / name).is_file() else []
    if not said:
        yield Finding(where, f"{name} is missing", _BUILD)
    elif any(line not in said for line in wanted) or (test == "TEST06" and "First token check pass: False" in said):
        yield Finding(where, f"{test} failed: {'; '.join(said)}", "See verdict.compliance in the run's result.json")
    if test == "TEST01":
        compared = folder / "verify_accuracy.txt"
        same = compared.is_file() and "TEST PASS" in compared.read_text()
        scored = all((folder / "accuracy" / f"{kind}_accuracy.txt").is_file() for kind in ("baseline", "compliance"))
        if not same and not scored:
            yield Finding(where, "the answers differ from the accuracy test's", "See verdict.compliance in result.json")
    if test in ("TEST01", "TEST04"):
        for log in (SUMMARY, DETAIL):
            if not (folder / "performance" / "run_1" / log).is_file():
                yield Finding(where, f"performance/run_1/{log} is missing", _BUILD)
