"""Real LoadGen logs that LoadGen calls VALID, each changed in one thing that MLPerf does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, log_rules
from mlperf_exp.bench import bench, start
from mlperf_exp.bench import measure as run_tests
from mlperf_exp.benchmarks import BENCHMARKS, LOADGEN, SEEDS
from mlperf_exp.config import Decoder
from mlperf_exp.inputs import Inputs
from mlperf_exp.loadgen import settings
from mlperf_exp.measure import read_detail_log
from mlperf_exp.messages import Measurement, Plan, Sample
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress

WORDS = ["hw=h100", "backend=simulated", "backend.ttft_ms=5", "backend.tpot_ms=0.5", "backend.output_tokens=8",
         "scenario.min_duration_s=1", "scenario.min_query_count=600", "compliance=off", "progress=false"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def measure(folder: Path, *words: str) -> tuple[Plan, Measurement]:
    plan = make_plan(compose("config", [*WORDS, *words]), folder)
    with Progress(plan) as progress:
        return plan, bench(plan, Inputs(None, [Sample((1,), "")] * 64, None, [1] * 64), progress)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Measurement]:
    return measure(tmp_path_factory.mktemp("log"), "scenario=server", "scenario.target_qps=600")


def edited(given: tuple[Plan, Measurement], **changes: Any) -> list[str]:
    plan, measurement = given
    (test,) = measurement.tests
    logged = {key: value for key, value in (test.loadgen | changes).items() if value != "gone"}
    return list(log_rules.reasons(plan, replace(measurement, tests=(replace(test, loadgen=logged),))))


def test_a_run_of_the_round_has_nothing_against_it(good: tuple[Plan, Measurement]) -> None:
    assert edited(good) == []


def test_seeds_and_version_are_those_inside_loadgen(good: tuple[Plan, Measurement]) -> None:
    chosen = lg.TestSettings()
    chosen.FromConfig("", "llama3_1-8b", "Server", 0)
    assert {name: getattr(chosen, name) for name in SEEDS} == SEEDS
    logged = good[1].tests[0].loadgen
    assert logged["loadgen_version"].split()[0] == LOADGEN
    assert {name: logged[f"effective_{name}"] for name in SEEDS} == SEEDS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"effective_schedule_rng_seed": 7}, "schedule_rng_seed is 7, this round's is 16159082839903944936"),
        ({"effective_qsl_rng_seed": "gone"}, "qsl_rng_seed is None"),
        ({"loadgen_version": "5.1.1 @ abc"}, "is LoadGen 5.1.1's, this round's is 6.0.17"),
        ({"loadgen_git_status_message": " M loadgen.cc"}, "built with changes"),
        ({"effective_scenario": "Offline"}, "of the scenario Offline, not Server"),
        ({"effective_test_mode": "AccuracyOnly"}, "of the mode AccuracyOnly"),
        ({"requested_performance_issue_same": True}, "performance_issue_same, which only compliance tests may"),
        ({"effective_sample_concatenate_permutation": False}, "Equal issue"),
        ({"requested_use_token_latencies": False}, "Token latencies"),
        ({"early_stopping_met": False}, "early stopping was not met: it was changed"),
        ({"generated_query_count": 9999}, "log has 9,999 samples"),
        ({"effective_min_duration_ms": 600000}, "least duration of 600000 ms"),
        ({"num_errors": "gone"}, "cut short, num_errors is not in it"),
        ({"result_validity": "gone"}, "cut short, result_validity is not in it"),
    ],
)
def test_each_change_gives_one_sentence(good: tuple[Plan, Measurement], changes: dict[str, Any], said: str) -> None:
    (reason,) = edited(good, **changes)
    assert said in reason
    assert reason.endswith(".")


def test_a_log_with_better_figures_than_the_records_was_edited(good: tuple[Plan, Measurement]) -> None:
    plan, measurement = good
    better = replace(measurement, metrics=measurement.metrics | {"ttft_p99_ms": 0.1})
    (reason,) = log_rules.reasons(plan, better)
    assert "ttft p99 0.1 ms" in reason
    assert "one was changed" in reason


def test_a_truncated_log_gives_one_line(good: tuple[Plan, Measurement], tmp_path: Path) -> None:
    text = (good[1].tests[0].log_dir / "mlperf_log_detail.txt").read_text()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "mlperf_log_detail.txt").write_text(text[: int(len(text) * share)])
        plan, measurement = good
        cut = replace(measurement.tests[0], loadgen=read_detail_log(tmp_path))
        (reason,) = log_rules.reasons(plan, replace(measurement, tests=(cut,)))
        assert "is cut short" in reason


@pytest.mark.parametrize(
    ("model", "scenario"),
    [("llama3_8b", "offline"), ("llama3_8b", "server"), ("llama3_8b", "interactive"), ("llama3_8b_edge", "offline"),
     ("llama3_8b_edge", "single_stream")],
)  # fmt: skip
def test_every_scenario_asks_loadgen_for_what_mlperf_wants(model: str, scenario: str) -> None:
    """Against the mlperf.conf inside LoadGen: duration, equal issue, token latencies' bounds, sample counts."""
    plan = make_plan(compose("config", ["hw=h100", f"model={model}", f"scenario={scenario}"]), Path("run"))
    total = plan.config.model.performance_samples or 0
    chosen, _ = settings(plan, "performance", total)
    assert chosen.min_duration_ms == 600_000
    assert chosen.sample_concatenate_permutation
    assert chosen.use_token_latencies
    assert chosen.performance_sample_count_override == {"llama3_8b": 13368, "llama3_8b_edge": 5000}[model]
    bounds = BENCHMARKS[plan.config.model.benchmark or ""].bounds_ms.get(plan.config.scenario.name, {})
    assert (plan.config.scenario.ttft_ms, plan.config.scenario.tpot_ms) == (bounds.get("ttft"), bounds.get("tpot"))
    if bounds:
        assert (chosen.ttft_latency, chosen.tpot_latency) == (bounds["ttft"] * 1e6, bounds["tpot"] * 1e6)
    assert all(issubclass(known.kind, Decoder) == ("llama" in name) for name, known in BENCHMARKS.items())


@pytest.mark.parametrize("words", [("scenario=offline", "scenario.target_qps=700"),
                                   ("scenario=interactive", "scenario.target_qps=600"),
                                   ("model=llama3_8b_edge", "scenario=single_stream", "scenario.min_query_count=64",
                                    "scenario.expected_latency_ms=20")])  # fmt: skip
def test_real_logs_of_every_scenario_pass_and_send_whole_copies(tmp_path: Path, words: tuple[str, ...]) -> None:
    plan, measurement = measure(tmp_path, *words)
    assert list(log_rules.reasons(plan, measurement)) == []
    test = measurement.tests[0]
    assert test.issued % 64 == 0
    assert test.loadgen["effective_sample_concatenate_permutation"] is True


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("single_stream", ("model.benchmark=null",)),
        ("single_stream", ("model=llama3_8b_edge",)),  # equal issue
        ("multi_stream", ("model.benchmark=null",)),
    ],
)
def test_streams_are_sized_by_the_systems_own_latency(tmp_path: Path, scenario: str, words: tuple[str, ...]) -> None:
    """LoadGen's default would have them end early, or never; and it prepares more queries than it sends."""
    words = (f"scenario={scenario}", "scenario.min_query_count=64", *words)
    plan, measurement = measure(tmp_path, *words)
    assert list(log_rules.reasons(plan, measurement)) == []
    (test,) = measurement.tests
    expected_ms = measurement.metrics["expected_latency_ms"]
    assert test.loadgen["generated_query_count"] >= 2 * 1000 / expected_ms  # LoadGen prepares for twice the duration
    assert expected_ms > 1.5 * 6  # five milliseconds to the first token, and seven tokens more; log-normal
    assert measurement.phases["pilot_s"] > 0.04
    name = "single" if scenario == "single_stream" else "multi"
    assert test.loadgen[f"requested_{name}_stream_expected_latency_ns"] == pytest.approx(1e6 * expected_ms, rel=1e-4)
    assert "target_latency" in (test.log_dir / "user.conf").read_text()


def test_a_stream_whose_system_is_lost_or_hangs_before_it(tmp_path: Path) -> None:
    words = ["scenario=single_stream", "model=llama3_8b_edge"]
    for number, (word, said) in enumerate(
        (("backend.fail_after=2", "was told to fail"), ("backend.hang_after=2", "no query finished in 1 s"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, measurement = measure(folder, *words, word, "scenario.stall_timeout_s=1")
        assert said in str(measurement.failure)
        assert measurement.tests == ()


def test_a_real_accuracy_log_passes_and_a_truncated_one_does_not(tmp_path: Path) -> None:
    plan = replace(make_plan(compose("config", [*WORDS, "scenario=offline"]), tmp_path), modes=("accuracy",))
    with Progress(plan) as progress:
        sut = start(plan, Inputs(None, [Sample((1,), "")] * 64, None, [1] * 64), progress)
        measurement = run_tests(sut, plan, Inputs(None, [Sample((1,), "")] * 64, None, [1] * 64), progress)
        sut.stop()
    assert list(log_rules.reasons(plan, measurement)) == []
    (test,) = measurement.tests
    text = (test.log_dir / "mlperf_log_detail.txt").read_text()
    (test.log_dir / "mlperf_log_detail.txt").write_text(text[: int(len(text) * 0.9)])
    cut = replace(test, loadgen=read_detail_log(test.log_dir))
    (reason,) = log_rules.reasons(plan, replace(measurement, tests=(cut,)))
    assert "accuracy log is cut short" in reason
