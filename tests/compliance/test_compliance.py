"""The compliance tests with the real LoadGen: on systems that keep the rules, and on systems that cheat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, loadgen, measure
from mlperf_exp.bench import bench
from mlperf_exp.compliance import accuracy, caching, outputs, rules, session
from mlperf_exp.compliance.audit import audit_config
from mlperf_exp.errors import UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.judge import judge
from mlperf_exp.messages import Completion, ComplianceTest, Measurement, Plan, Query, Sample
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress
from mlperf_exp.sut.base import Sink

END = 128009  # <|eot_id|> of Llama 3.1
SAMPLES = 64
WORDS = ["hw=h100", "backend=simulated", "backend.ttft_ms=2", "backend.tpot_ms=0.2", "backend.output_tokens=8",
         "scenario.target_qps=500", "scenario.min_duration_s=1", "scenario.min_query_count=500",
         "progress=false"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(compose("config", [*WORDS, *overrides]), folder)


def inputs() -> Inputs:
    return Inputs(None, [Sample((1,), "")] * SAMPLES, None)


class System:
    """Answers at once in a thread of its own; what it says of its answers is the tests' to choose."""

    def __init__(
        self,
        answer: Callable[[Query], list[int]] = lambda query: [query.sample, 7, END],
        first: Callable[[list[int]], int] = lambda tokens: tokens[0],
        count: Callable[[list[int]], int] = len,
        delay_s: Callable[[Query], float] = lambda query: 0.0,
    ) -> None:
        self.answer, self.first, self.count, self.delay_s = answer, first, count, delay_s

    def start(self, samples: Sequence[Sample]) -> dict[str, float]:
        return {}

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        threading.Thread(target=self._answer, args=(queries, sink), daemon=True).start()

    def _answer(self, queries: Sequence[Query], sink: Sink) -> None:
        for query in queries:
            time.sleep(self.delay_s(query))
            tokens = self.answer(query)
            sink.first_token([query.row], [self.first(tokens)])
            sink.complete([Completion(query.row, tokens, n_tokens=self.count(tokens))])

    def stop(self) -> None:
        pass


def run_test06(folder: Path, system: System, *overrides: str) -> ComplianceTest:
    it = plan(folder, "compliance=on", *overrides)
    with Progress(it) as progress:
        (checked,) = session.run(it, system, inputs(), progress)
    return checked


@pytest.mark.parametrize("scenario", ["server", "offline", "interactive", "single_stream"])
def test_an_honest_system_passes_in_every_scenario(tmp_path: Path, scenario: str) -> None:
    checked = run_test06(tmp_path, System(), f"scenario={scenario}")
    assert checked.passed and checked.reasons == ()
    first = None if scenario == "offline" else True
    assert checked.checks == {"first_token": first, "end_of_text": True, "token_count": True}
    assert 50 <= checked.figures["samples"] <= 200
    logged = measure.read_detail_log(checked.log_dir)
    assert logged["effective_accuracy_log_sampling_target"] == 100
    assert logged["effective_sample_concatenate_permutation"] is False
    said = (tmp_path / "compliance" / "TEST06" / "verify_accuracy.txt").read_text()
    assert f"First token check pass: {'Skipped' if first is None else 'True'}" in said
    assert "TEST06 verification complete" in said


CHEATS: dict[str, tuple[System, str, str]] = {
    "first": (System(first=lambda tokens: 99999), "first_token", "first tokens were reported wrong, such as [99999]"),
    "some first": (
        System(answer=lambda q: [q.sample, 7, END], first=lambda t: t[0] if t[0] % 8 else 5),
        "first_token",
        "first tokens were reported wrong",
    ),
    "goes on": (System(answer=lambda q: [4, END, 5, END]), "end_of_text", "go on after their end of text"),
    "two ends": (System(answer=lambda q: [4, 128001, END]), "end_of_text", "go on after their end of text"),
    "count": (System(count=lambda tokens: len(tokens) + 100), "token_count", "103 instead of 3"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_are_found(tmp_path: Path, cheat: str) -> None:
    system, check, words = CHEATS[cheat]
    checked = run_test06(tmp_path, system, "scenario=server")
    assert not checked.passed
    assert {name for name, good in checked.checks.items() if not good} == {check}
    assert words in checked.reasons[0]
    assert "TEST06 verification failed" in (checked.log_dir / "verify_accuracy.txt").read_text()


def test_the_last_token_may_be_an_end_or_not(tmp_path: Path) -> None:
    assert run_test06(tmp_path, System(answer=lambda q: [4, 5, 6]), "scenario=server").passed


def test_queries_that_fail_fail_the_test(tmp_path: Path) -> None:
    it = plan(tmp_path, "compliance=on", "scenario=server", "backend.error_rate=0.2")
    with Progress(it) as progress:
        (checked,) = bench(it, inputs(), progress).compliance
    assert not checked.passed
    assert "queries ended with an error" in checked.reasons[0]


def test_a_log_of_another_test_and_a_cut_one_do_not_pass(tmp_path: Path) -> None:
    checked = run_test06(tmp_path, System(), "scenario=server")
    folder = checked.log_dir
    plain = tmp_path / "plain"
    plain.mkdir()
    with_no_audit = loadgen.run_test(
        plan(tmp_path, "scenario=server"), "performance", System(), SAMPLES, plain, lambda live: None
    )
    assert with_no_audit.finished
    said = outputs.verify(plain, offline=False, end_ids=[END])
    assert not said.passed and "did not apply audit.config" in said.reasons[0]
    log = folder / "mlperf_log_accuracy.json"
    log.write_text(log.read_text()[:-200])
    said = outputs.verify(folder, offline=False, end_ids=[END])
    assert not said.passed and "cut short" in said.reasons[0]
    log.unlink()
    assert "cannot be read" in outputs.verify(folder, offline=False, end_ids=[END]).reasons[0]
    log.write_text("[\n]\n")
    assert "no answer was logged" in outputs.verify(folder, offline=False, end_ids=[END]).reasons[0]
    log.write_text(json.dumps([{"qsl_idx": 1, "data": "0102", "token_data": "01000000", "token_count": 1}]))
    assert "no int32" in outputs.verify(folder, offline=False, end_ids=[END]).reasons[0]


def test_a_stray_audit_config_is_not_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.config").write_text(audit_config("TEST06"))
    folder = tmp_path / "performance"
    folder.mkdir()
    loadgen.run_test(plan(tmp_path, "scenario=server"), "performance", System(), SAMPLES, folder, lambda live: None)
    assert measure.read_detail_log(folder)["effective_accuracy_log_sampling_target"] == 0


def test_bench_runs_it_after_the_other_tests_on_the_same_start(tmp_path: Path) -> None:
    it = plan(tmp_path, "compliance=on", "scenario=server")
    with Progress(it) as progress:
        measurement = bench(it, inputs(), progress)
    assert [test.mode for test in measurement.tests] == ["performance"]
    assert [test.name for test in measurement.compliance] == ["TEST06"]
    assert measurement.compliance[0].passed
    assert measurement.phases["compliance_s"] > 0
    assert judge(it, measurement).compliance["TEST06"]["passed"] is True


def test_which_tests_are_planned(tmp_path: Path) -> None:
    def planned(*words: str) -> tuple[str, ...]:
        return make_plan(compose("config", ["hw=h100", "scenario=server", *words]), tmp_path).compliance

    assert planned() == ("TEST06",)
    assert planned("division=open") == ()
    assert planned("division=open", "compliance=on") == ("TEST06",)
    assert planned("compliance=off") == ()
    assert planned("scenario.mode=accuracy") == ()
    assert planned("model.weights=dummy") == ()  # never valid: nothing to prove
    assert planned("model=llama3_8b_edge", "scenario=offline") == ()  # MLPerf asks for none
    with pytest.raises(UserError, match="no compliance test for llama3_8b_edge"):
        planned("model=llama3_8b_edge", "scenario=offline", "compliance=on")


def test_the_closed_division_wants_it(tmp_path: Path) -> None:
    def said(*words: str, compliance: tuple[ComplianceTest, ...] = ()) -> list[str]:
        it = make_plan(compose("config", ["hw=h100", "scenario=server", *words]), tmp_path)
        return list(rules.reasons(it, Measurement({}, {}, compliance=compliance)))

    assert said("division=open") == []
    (missing,) = said()
    assert missing == "TEST06 was not run, and the closed division asks for it: run it again, or with division=open."
    (off,) = said("compliance=off")
    assert "leave out compliance=off" in off
    good = ComplianceTest("TEST06", True, {}, tmp_path)
    assert said(compliance=(good,)) == []
    bad = replace(good, passed=False, reasons=("3 of 100 first tokens were reported wrong",))
    (reason,) = said(compliance=(bad,))
    assert reason.startswith("TEST06 failed: 3 of 100 first tokens were reported wrong. See compliance/TEST06, ")


def run_test01(folder: Path, system: System, score: accuracy.Score | None = None) -> ComplianceTest:
    """The accuracy test and the performance test of an honest system, then TEST01 of ``system``."""
    it = plan(folder, "scenario=server")
    for name, mode, audit, sut in (
        ("accuracy", "accuracy", None, System()),
        ("performance", "performance", None, System()),
        ("TEST01", "performance", audit_config("TEST01"), system),
    ):
        (folder / name).mkdir(exist_ok=True)
        loadgen.run_test(it, mode, sut, SAMPLES, folder / name, lambda live: None, audit=audit)
    return accuracy.verify(folder / "TEST01", folder / "accuracy", folder / "performance", score)


def test_the_same_answers_while_speed_is_measured(tmp_path: Path) -> None:
    checked = run_test01(tmp_path, System())
    assert checked.checks["accuracy"]
    assert checked.figures["samples"] > 30 and checked.figures["differing"] == 0
    assert "TEST PASS" in (tmp_path / "TEST01" / "verify_accuracy.txt").read_text()
    # A busy machine may really be slower for a second: what is said must then be what the figures say.
    change = checked.figures["test_per_second"] / checked.figures["reference_per_second"] - 1
    assert checked.passed == checked.checks["performance"] == (abs(change) <= 0.1)
    assert (
        (tmp_path / "TEST01" / "verify_performance.txt")
        .read_text()
        .endswith("TEST PASS\n" if checked.passed else "TEST FAIL\n")
    )


def test_other_answers_while_speed_is_measured(tmp_path: Path) -> None:
    other = System(answer=lambda q: [q.sample, 7, END] if q.sample % 4 else [q.sample, 8, END])
    checked = run_test01(tmp_path, other)
    assert not checked.passed and "answers are not those of the accuracy test" in checked.reasons[0]
    assert "TEST FAIL" in (tmp_path / "TEST01" / "verify_accuracy.txt").read_text()
    folders = (tmp_path / "TEST01", tmp_path / "accuracy", tmp_path / "performance")

    def score(answers: object) -> tuple[float, str]:  # stands for a benchmark's own
        calls.append(answers)
        return 50.0 + spread * (len(calls) % 2), f"accuracy={50 + spread * (len(calls) % 2):.3f}%"

    calls: list[object] = []
    spread = 0.1
    close = accuracy.verify(*folders, score)
    assert close.checks["accuracy"] and close.figures["apart_percent"] < 1
    assert (tmp_path / "TEST01" / "baseline_accuracy.txt").read_text().startswith("accuracy=50.1")
    assert "TEST FAIL" in (tmp_path / "TEST01" / "verify_accuracy.txt").read_text()  # byte by byte it still differs
    strict = accuracy.allowed_percent("bert-99.9")
    assert not accuracy.verify(*folders, score, allowed_percent=strict).checks["accuracy"]
    spread = 1.0
    apart = accuracy.verify(*folders, score)
    assert not apart.checks["accuracy"] and "lie 2.00 % apart, over 1 %" in apart.reasons[0]


def run_test04(folder: Path, scenario: str, system: System) -> ComplianceTest:
    it = plan(folder, f"scenario={scenario}", "scenario.expected_latency_ms=4", "scenario.min_query_count=200")
    for name, audit in (("performance", None), ("TEST04", audit_config("TEST04"))):
        (folder / name).mkdir()
        loadgen.run_test(it, "performance", system, SAMPLES, folder / name, lambda live: None, audit=audit)
    return caching.verify(folder / "TEST04", folder / "performance")


def test_a_system_that_keeps_no_answers(tmp_path: Path) -> None:
    checked = run_test04(tmp_path, "server", System())
    faster = checked.figures["test_per_second"] / checked.figures["reference_per_second"] - 1
    assert checked.passed == (faster < 0.1), checked.reasons  # on a quiet machine they are equal
    assert measure.read_detail_log(tmp_path / "TEST04")["effective_performance_issue_same"] is True
    said = (tmp_path / "TEST04" / "verify_performance.txt").read_text()
    assert said.endswith("TEST PASS\n" if checked.passed else "TEST FAIL\n")


def test_a_system_that_keeps_its_last_answer(tmp_path: Path) -> None:
    last = [-1]

    def delay_s(query: Query) -> float:
        known, last[0] = last[0] == query.sample, query.sample
        return 0.001 if known else 0.02

    checked = run_test04(tmp_path, "single_stream", System(delay_s=delay_s))
    assert not checked.passed
    assert "something keeps answers" in checked.reasons[0] or "INVALID" in checked.reasons[0]
    assert checked.figures["test_per_second"] > 2 * checked.figures["reference_per_second"]


@pytest.mark.skipif(
    "MLCOMMONS_INFERENCE" not in os.environ, reason="MLCOMMONS_INFERENCE names no checkout to compare with"
)
@pytest.mark.parametrize("scenario", ["server", "offline"])
def test_mlcommons_own_verification_agrees(tmp_path: Path, scenario: str) -> None:
    """The reference's script with its default id 2 against ours with the same id, on the same logs."""
    script = Path(os.environ["MLCOMMONS_INFERENCE"]) / "compliance" / "TEST06" / "run_verification.py"
    systems = {
        "good": System(answer=lambda q: [5, 6, 2]),
        "first": System(answer=lambda q: [5, 6, 2], first=lambda tokens: 9),
        "ends": System(answer=lambda q: [5, 2, 2]),
        "count": System(answer=lambda q: [5, 6, 2], count=lambda tokens: 9),
    }
    for name, system in systems.items():
        folder = tmp_path / name
        folder.mkdir()
        words = (f"scenario={scenario}", "model.architecture.eos_token_ids=[2]")
        ours = (run_test06(folder, system, *words).log_dir / "verify_accuracy.txt").read_text()
        done = subprocess.run(
            [sys.executable, str(script), "-c", str(folder / "compliance" / "TEST06"), "-o", str(folder / "official"),
             "-s", scenario.capitalize()],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert (folder / "official" / "TEST06" / "verify_accuracy.txt").read_text() == ours, done.stdout
