"""Run folders as a run leaves them: records written by the program's own writer, and a result by its contract."""

from __future__ import annotations

import copy
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlperf_exp.files import write_json
from mlperf_exp.records import Records
from mlperf_exp.report import write_report

TARGET = {
    "samples": 13368, "maximum": {"gen_len": 8984408},
    "minimum": {"rouge1": 38.39141, "rouge2": 15.74843, "rougeL": 24.25074, "rougeLsum": 35.43507, "gen_len": 7350880},
}  # fmt: skip
RESULT: dict[str, Any] = {
    "schema": 1,
    "run": {
        "id": "20260102-030405-ab12cd", "name": "llama3_8b h100 server", "status": "finished", "error": None,
        "command": ["python", "-m", "mlperf_exp", "model=llama3_8b"], "overrides": ["model=llama3_8b"],
        "started_at": "2026-01-02T03:04:05Z", "ended_at": "2026-01-02T03:09:15Z",
    },
    "plan": {
        "config": {
            "model": {"name": "llama3_8b", "benchmark": "llama3_1-8b", "target": TARGET, "max_new_tokens": 128},
            "dataset": {"name": "cnn_dailymail"}, "hw": {"name": "h100"}, "backend": {"name": "vllm"},
            "scenario": {"name": "server", "target_qps": 22.0, "min_duration_s": 180.0, "ttft_ms": 2000.0,
                         "tpot_ms": 100.0, "latency_percentile": 99.0},
            "seed": 1, "division": "closed",
        },
        "engine": {"max_num_seqs": 1024, "enable_prefix_caching": False}, "modes": ["performance", "accuracy"],
        "derived": [{"key": "backend.engine.max_num_seqs", "value": 1024, "why": "1,310 sequences fit in 56.2 GiB"}],
        "warnings": ["The KV cache is left in bfloat16."],
    },
    "environment": {"git_commit": "0123abcd", "packages": {"torch": "2.13.0"}, "python": "3.11.9", "cpu": "a cpu",
                    "gpus": ["a gpu"], "driver": "580.65", "hostname": "node-17", "platform": "Linux"},
    "verdict": {
        "valid": False,
        "reasons": ["TPOT p99 107 ms is over 100 ms: lower scenario.target_qps (now 22)."],
        "warnings": ["rougeLsum is not the reference's."],
        "accuracy": {"measured": True, "passed": False, "targets": TARGET, "samples": 13368,
                      "notes": ["punkt_tab is not installed."]},
        "compliance": {},
    },
    "metrics": {
        "samples_per_second": 21.37, "tokens_per_second": 1578.2, "queries": 4000, "errors": 0, "target_qps": 22.0,
        "ttft_mean_ms": 203.1, "ttft_p50_ms": 181.2, "ttft_p90_ms": 350.0, "ttft_p99_ms": 1621.4,
        "tpot_mean_ms": 30.8, "tpot_p50_ms": 30.1, "tpot_p90_ms": 39.0, "tpot_p99_ms": 107.3,
        "latency_mean_ms": 2411.0, "latency_p50_ms": 2380.0, "latency_p99_ms": 5210.0, "latency_p999_ms": 6100.0,
        "wall_samples_per_second": 12.9, "full_dataset_hours": 0.2879, "full_dataset_samples": 13368,
        "rouge1": 38.7792, "rouge2": 15.9075, "rougeL": 24.4957, "rougeLsum": 35.12, "gen_len": 8167644,
        "gen_num": 13368,
    },
    "phases": {"prepare_s": 1.8, "start_s": 41.2, "warmup_s": 6.1, "load_s": 181.0, "drain_s": 3.9,
               "accuracy_s": 61.0, "score_s": 12.4, "total_s": 330.0},
    "tests": {"performance": {"loadgen": {"result_validity": "INVALID", "loaded_qsl_set": list(range(13368))},
                              "issued": 4000, "completed": 4000, "errors": 0, "first_error": None, "wall_s": 185.1}},
    "artifacts": [{"path": "performance/queries.parquet", "bytes": 301223, "sha256": "ab" * 32}],
}  # fmt: skip


def fill(count: int, qps: float = 20.0, errors: int = 0) -> Records:
    """Records of a Poisson load of ``count`` queries, as if it had been run."""
    draw = np.random.default_rng(7)
    records, start = Records(count), 10**12
    issued = np.cumsum(draw.exponential(1 / qps, count))
    tokens = draw.integers(20, 129, count)
    first = issued + draw.lognormal(np.log(0.18), 0.5, count)
    done = first + draw.lognormal(np.log(0.03), 0.2, count) * (tokens - 1)
    records.add(range(count), draw.integers(0, 64, count).tolist())
    for column, seconds in ((records.issued_ns, issued), (records.first_token_ns, first), (records.completed_ns, done)):
        column[:count] = array("q", (start + seconds * 1e9).astype(np.int64).tobytes())
    records.tokens[:count] = array("q", tokens.astype(np.int64).tobytes())
    records.errors.update(dict.fromkeys(range(errors), "the engine is lost"))
    return records


def live_lines(seconds: int) -> str:
    """What ``live.jsonl`` holds of a performance test that was killed while it wrote a line."""
    lines = [
        {"at": 1e9 + i, "phase": "performance", "elapsed_s": i + 0.5, "issued": 22 * i + 60, "completed": 22 * i,
         "errors": 0, "tokens": 1600 * i, "expected": 4000, "samples_per_second": 22.0, "tokens_per_second": 1600.0,
         "ttft_p50_ms": 180.0, "ttft_p99_ms": None, "tpot_p50_ms": None, "tpot_p99_ms": None}
        for i in range(seconds)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines) + '{"at": 1000000090, "phase": "perfo'


@pytest.fixture
def result() -> dict[str, Any]:
    return copy.deepcopy(RESULT)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run folder; ``queries=None`` leaves the records out, ``live`` gives seconds of live.jsonl."""

    def make(result: dict[str, Any] | None, queries: int | None = 400, live: int | None = None, **load: Any) -> Path:
        folder = tmp_path_factory.mktemp("run")
        (folder / "performance").mkdir()
        if queries is not None:
            fill(queries, **load).write_parquet(folder / "performance" / "queries.parquet", [780] * 64)
        if live is not None:
            (folder / "live.jsonl").write_text(live_lines(live))
        if result is not None:
            write_json(folder / "result.json", result)
        return folder

    return make


@pytest.fixture(scope="session")
def reported(run_folder: Callable[..., Path]) -> Path:
    """The folder of a finished run with its report, for tests that only read it."""
    folder = run_folder(RESULT)
    write_report(folder, copy.deepcopy(RESULT))
    return folder
