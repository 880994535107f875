"""All four scenarios in both modes, as whole runs over a real HTTP server; and a run whose MLflow is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs_of_commands import SIMULATED, run

from mlperf_exp.data.accuracy_log import read_accuracy_log
from tests.sut.openai_server import OUTPUT, Kind, Server

SCENARIOS = {
    "offline": ("Offline", ["scenario.min_query_count=144", "scenario.min_duration_s=0"]),
    "server": ("Server", ["scenario.target_qps=100", "scenario.min_duration_s=1"]),
    "interactive": ("Server", ["scenario.target_qps=100", "scenario.min_duration_s=1"]),
    "single_stream": ("SingleStream", ["scenario.expected_latency_ms=0.3", "scenario.min_duration_s=1"]),
}
# TTFT and TPOT in nanoseconds, as LoadGen's own configuration for the round bounds them
BOUNDS = {"server": (2_000_000_000, 100_000_000), "interactive": (500_000_000, 30_000_000)}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_modes_of_each_scenario(tmp_path: Path, scenario: str) -> None:
    name, short = SCENARIOS[scenario]
    with Server() as server:
        server.everything = Kind.GOOD
        done = run(
            tmp_path / "run", "model=llama3_tiny", "division=open", "backend=openai", f"backend.urls=[{server.url}]",
            f"scenario={scenario}", *short, "tracking.enabled=false",
        )  # fmt: skip
    assert done.status == 0, done.stderr
    result = done.result
    for mode, test in result["tests"].items():
        logged = test["loadgen"]
        assert logged["effective_scenario"] == name
        assert logged["effective_test_mode"] == {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}[mode]
        assert logged["requested_use_token_latencies"] is True
        assert logged["effective_qsl_rng_seed"] == 2085463073848966840  # of round v6.1; 0 where the settings got lost
        assert logged["effective_schedule_rng_seed"] == 16159082839903944936
        assert test["errors"] == logged.get("num_errors", 0) == 0  # LoadGen counts them in performance mode only
        assert test["issued"] == test["completed"]
        if scenario in BOUNDS:
            bounds = (logged["requested_server_ttft_latency"], logged["requested_server_tpot_latency"])
            assert bounds == BOUNDS[scenario]
    assert list(result["tests"]) == ["performance", "accuracy"]
    outputs = read_accuracy_log(done.folder / "accuracy" / "mlperf_log_accuracy.json")
    assert sorted(outputs) == list(range(72))
    assert all(len(tokens) == OUTPUT for tokens in outputs.values())
    metrics = result["metrics"]
    assert metrics["output_tokens_mean"] == OUTPUT
    assert 0 < metrics["ttft_p50_ms"] < metrics["latency_p50_ms"]
    assert metrics["tpot_p50_ms"] > 0
    assert 0 < metrics["wall_samples_per_second"] < metrics["samples_per_second"]
    assert result["verdict"]["valid"] is False


def test_loadgens_own_errors_are_told_in_its_words(tmp_path: Path) -> None:
    """A system faster than expected: LoadGen runs out of queries before the duration is over."""
    with Server() as server:
        server.everything = Kind.GOOD
        done = run(
            tmp_path / "run", "model=llama3_tiny", "division=open", "backend=openai", f"backend.urls=[{server.url}]",
            "scenario=single_stream", "scenario.min_duration_s=1", "scenario.mode=performance",
            "scenario.expected_latency_ms=100", "scenario.min_query_count=10", "tracking.enabled=false",
        )  # fmt: skip
    assert done.status == 0, done.stderr
    assert any("Ran out of generated queries" in reason for reason in done.result["verdict"]["reasons"])


def test_several_servers_share_the_load(tmp_path: Path) -> None:
    with Server() as one, Server() as two:
        one.everything = two.everything = Kind.GOOD
        done = run(
            tmp_path / "run", "model=llama3_tiny", "division=open", "backend=openai",
            f"backend.urls=[{one.url},{two.url}]", "scenario=offline", "scenario.min_query_count=720",
            "scenario.min_duration_s=0", "scenario.mode=performance", "tracking.enabled=false",
        )  # fmt: skip
        assert done.status == 0, done.stderr
        assert done.result["metrics"]["errors"] == 0
        shares = sorted(len(server.bodies) for server in (one, two))
    assert sum(shares) >= 720
    assert shares[0] > 0.4 * sum(shares)


def test_an_mlflow_that_refuses_costs_a_warning_only(tmp_path: Path) -> None:
    overrides = [word for word in SIMULATED if not word.startswith("tracking")]
    done = run(
        tmp_path / "run", *overrides, "scenario.target_qps=100", "scenario.min_duration_s=1",
        "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=30",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    warnings = done.result["verdict"]["warnings"]
    assert any("tracking.uri" in text and "python -m mlperf_exp.track" in text for text in warnings)
    assert done.result["metrics"]["completed"] == done.result["metrics"]["queries"]
