"""Figures against NumPy and by hand, and LoadGen's log in all states that a crash can leave it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_exp import measure
from mlperf_exp.config import Config, Scenario, ScenarioRules
from mlperf_exp.messages import Completion
from mlperf_exp.records import Records

MS = 10**6


def config(name: Scenario = Scenario.server, qps: float | None = 5.0) -> Config:
    return Config(scenario=ScenarioRules(name=name, target_qps=qps))


def timed(rows: list[tuple[int, int, int, int]]) -> Records:
    """Records of (issued, first token, end) in ms and tokens; no first token: 0; no end: 0; tokens -1: an error."""
    records = Records()
    records.add(range(len(rows)), [i % 3 for i in range(len(rows))])
    for row, (issued, first, end, tokens) in enumerate(rows):
        if end:
            completion = Completion(row, error="no") if tokens < 0 else Completion(row, n_tokens=tokens)
            records.claim([completion])
            records.completed_ns[row] = 10**12 + end * MS
        records.issued_ns[row] = 10**12 + issued * MS
        records.first_token_ns[row] = 10**12 + first * MS if first else 0
    return records


def figures(records: Records, loadgen: dict[str, Any] | None = None, **of: Any) -> dict[str, float]:
    return measure.performance_metrics(config(**of), records, loadgen or {}, prompt_tokens=[10, 20, 30])


_times = st.integers(1, 10_000)
_row = st.tuples(_times, _times, _times, st.integers(2, 128)).map(
    lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2], t[3])
)


@given(st.lists(_row, min_size=1, max_size=60))
def test_percentiles_are_numpys(rows: list[tuple[int, int, int, int]]) -> None:
    found = figures(timed(rows))
    issued, first, end, tokens = (np.array(column) for column in zip(*rows, strict=True))
    for name, values in (
        ("latency", end - issued), ("ttft", first - issued), ("tpot", (end - first) / (tokens - 1)),
    ):  # fmt: skip
        assert found[f"{name}_mean_ms"] == pytest.approx(values.mean())
        for key, q in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9)):
            assert found[f"{name}_{key}_ms"] == pytest.approx(np.percentile(values, q))
    assert found["sent_latency_p99_ms"] == found["latency_p99_ms"]
    span_s = (end.max() - issued.min()) / 1000
    assert found["samples_per_second"] == pytest.approx(len(rows) / span_s)
    assert found["tokens_per_second"] == pytest.approx(tokens.sum() / span_s)
    assert found["queries"] == found["completed"] == len(rows)


def test_by_hand() -> None:
    records = timed([(0, 100, 400, 4), (500, 600, 1000, 5), (700, 0, 900, -1), (800, 0, 0, 0), (900, 0, 1100, 1)])
    records.claim([Completion(0, n_tokens=99)])
    found = figures(records)
    assert (found["queries"], found["completed"], found["errors"], found["duplicates"]) == (5, 3, 1, 1)
    assert found["samples_per_second"] == pytest.approx(3 / 1.1)  # from the first sent to the last good end
    assert found["tokens_per_second"] == pytest.approx(10 / 1.1)
    assert found["output_tokens"] == 10
    assert found["output_tokens_mean"] == pytest.approx(10 / 3)
    assert found["ttft_mean_ms"] == pytest.approx(100)  # the one without a first token does not count
    assert found["tpot_mean_ms"] == pytest.approx(100)  # nor the one of a single token
    assert found["latency_mean_ms"] == pytest.approx((400 + 500 + 200) / 3)
    assert found["prompt_tokens_mean"] == pytest.approx((10 + 20 + 30 + 10 + 20) / 5)
    assert found["target_qps"] == 5.0


def test_what_was_not_measured_is_absent() -> None:
    found = figures(timed([(0, 0, 300, -1), (1, 0, 0, 0)]))
    assert found == {"queries": 2.0, "completed": 0.0, "errors": 1.0, "duplicates": 0.0, "prompt_tokens_mean": 15.0,
                     "target_qps": 5.0}  # fmt: skip
    assert figures(Records(), qps=None) == {"queries": 0.0, "completed": 0.0, "errors": 0.0, "duplicates": 0.0}
    assert "target_qps" not in figures(timed([(0, 1, 2, 3)]), name=Scenario.offline)


LOADGEN: dict[str, Any] = {
    "result_validity": "VALID",
    "result_99.00_percentile_latency_ns": 500 * MS,
    "result_first_token_99.00_percentile_latency_ns": 250 * MS,
    "result_first_token_mean_latency_ns": 125 * MS,
    "result_time_per_output_token_99.00_percentile_ns": 7 * MS,
    "result_time_to_output_token_mean": 6 * MS,
    "result_completed_samples_per_sec": 3.5,
    "result_completed_tokens_per_second": 448.0,
    "result_samples_per_second": 9.5,
    "result_tokens_per_second": 1216.0,
}


def test_loadgens_figures_win_and_ours_stand_beside() -> None:
    found = figures(timed([(0, 100, 400, 4)]), LOADGEN)
    assert found["latency_p99_ms"] == 500.0  # LoadGen counts from the scheduled time
    assert found["sent_latency_p99_ms"] == pytest.approx(400.0)  # and we from sending
    assert (found["ttft_p99_ms"], found["ttft_mean_ms"]) == (250.0, 125.0)
    assert (found["tpot_p99_ms"], found["tpot_mean_ms"]) == (7.0, 6.0)
    assert found["latency_p50_ms"] == pytest.approx(400.0)  # what LoadGen did not say is ours
    assert (found["samples_per_second"], found["tokens_per_second"]) == (3.5, 448.0)
    offline = figures(timed([(0, 100, 400, 4)]), LOADGEN, name=Scenario.offline)
    assert (offline["samples_per_second"], offline["tokens_per_second"]) == (9.5, 1216.0)


def test_without_loadgens_verdict_its_figures_do_not_count() -> None:
    cut = {key: value for key, value in LOADGEN.items() if key != "result_validity"}
    assert figures(timed([(0, 100, 400, 4)]), cut)["latency_p99_ms"] == pytest.approx(400.0)


def test_phases() -> None:
    assert measure.load_phases(Records()) == {}
    phases = measure.load_phases(timed([(0, 10, 2000, 3), (500, 0, 900, -1), (1000, 0, 0, 0)]))
    assert phases == {"load_s": pytest.approx(1.0), "drain_s": pytest.approx(1.0)}
    assert measure.load_phases(timed([(0, 0, 0, 0), (1000, 0, 0, 0)]))["drain_s"] == 0.0


def test_the_honest_figures() -> None:
    # 600 samples in a minute of load, within 5 minutes in all: 4 minutes are overhead
    found = measure.honest({"completed": 600.0, "samples_per_second": 10.0}, total_s=300.0, full_samples=13368)
    assert found["wall_samples_per_second"] == 2.0
    assert found["full_dataset_samples"] == 13368
    assert found["full_dataset_hours"] == pytest.approx((1336.8 + 240) / 3600)
    assert "full_dataset_hours" not in measure.honest({"completed": 600.0, "samples_per_second": 10.0}, 300.0, None)
    assert measure.honest({}, 300.0, 13368) == {}
    assert measure.honest({"completed": 0.0}, 300.0, 13368) == {}
    assert measure.honest({"completed": 5.0}, 0.0, 13368) == {}


@given(st.floats(1, 1e6), st.floats(1e-3, 1e5), st.floats(1e-3, 1e6), st.integers(1, 10**6))
def test_the_honest_figure_never_flatters(completed: float, rate: float, outside_s: float, full: int) -> None:
    total_s = completed / rate + outside_s
    found = measure.honest({"completed": completed, "samples_per_second": rate}, total_s, full)
    assert found["wall_samples_per_second"] <= rate * (1 + 1e-9)
    assert found["full_dataset_hours"] * 3600 >= full / rate * (1 - 1e-9)


def line(key: Any, value: Any) -> str:
    return ":::MLLOG " + json.dumps({"key": key, "value": value, "time_ms": 1.0, "namespace": "mlperf::logging"})


def log(folder: Path, content: str | bytes) -> dict[str, Any]:
    data = content.encode() if isinstance(content, str) else content
    (folder / "mlperf_log_detail.txt").write_bytes(data)
    return measure.read_detail_log(folder)


WHOLE = "\n".join(
    [line("seed", 1), line("seed", 2), line("error_x", "a"), line("error_x", "b"),
     line("result_invalid_reason", "one"), line("result_invalid_reason", "two"), line("num_errors", 2),
     line("result_validity", "INVALID"), ""]
)  # fmt: skip


def test_the_last_value_counts_and_reasons_are_collected(tmp_path: Path) -> None:
    assert log(tmp_path, WHOLE) == {
        "seed": 2, "error_x": ["a", "b"], "result_invalid_reason": ["one", "two"], "num_errors": 2,
        "result_validity": "INVALID",
    }  # fmt: skip


def test_no_log_and_an_empty_one_hold_nothing(tmp_path: Path) -> None:
    assert measure.read_detail_log(tmp_path) == {}
    assert log(tmp_path, "") == {}


@given(st.integers(0, len(WHOLE)))
def test_a_log_cut_short_anywhere_gives_a_part_of_the_whole(tmp_path_factory: Any, end: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole, part = log(folder, WHOLE), log(folder, WHOLE[:end])
    assert set(part) <= set(whole)
    assert ("result_validity" in part) == (end >= len(WHOLE) - 1)
    for key, value in part.items():
        assert value == whole[key] or key == "seed" or value == whole[key][: len(value)]


@given(st.binary(max_size=300), st.integers(0, len(WHOLE)))
def test_rubbish_in_a_log_is_passed_over(tmp_path_factory: Any, rubbish: bytes, at: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = WHOLE.encode()
    found = log(folder, data[:at] + rubbish + b"\n" + data[at:] + b"\n" + line("last", 1).encode())
    assert found["last"] == 1


@pytest.mark.parametrize(
    "entry", ["3", "null", "[]", '"text"', "{}", '{"key": "a"}', '{"value": 1}', '{"key": ["a"], "value": 1}', "{", ""]
)
def test_lines_of_another_shape_are_passed_over(tmp_path: Path, entry: str) -> None:
    found = log(tmp_path, f":::MLLOG {entry}\n:::OTHER {{}}\n{line('seed', 1)}\n")
    assert found["seed"] == 1
    assert set(found) <= {"seed", "['a']"}
