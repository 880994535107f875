"""Queries that end with an error and without a token: LoadGen counts them, in every mode, and does not crash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, loadgen
from mlperf_exp.compliance.audit import audit_config
from mlperf_exp.messages import Completion, Plan, Query
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.base import Sink


class Failing:
    """Fails ``share`` of a hundred queries before their first token."""

    def __init__(self, share: int) -> None:
        self._share, self._count = share, 0

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        for query in queries:
            self._count += 1
            if self._count % 100 < self._share:
                sink.complete([Completion(query.row, error="no")])
            else:
                sink.first_token([query.row], [1])
                sink.complete([Completion(query.row, (1, 2, 3))])


class Lost:
    """Answers half of the queries that it takes, and then is lost."""

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        for query in list(queries)[: len(queries) // 2]:
            sink.first_token([query.row], [1])
            sink.complete([Completion(query.row, (1, 2, 3))])
        sink.failed("lost")


def planned(run_dir: Path, scenario: str) -> Plan:
    words = ["model=llama3_tiny", "backend=simulated", f"scenario={scenario}", "scenario.mode=performance",
             "scenario.min_query_count=200", "scenario.min_duration_s=0", "scenario.samples=50",
             "scenario.target_qps=400"]  # fmt: skip
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        return make_plan(compose("config", words), run_dir)


def test_what_was_answered_before_a_loss_is_not_answered_twice(tmp_path: Path) -> None:
    outcome = loadgen.run_test(planned(tmp_path, "offline"), "performance", Lost(), 72, tmp_path, lambda _: None)  # type: ignore[arg-type]
    records = outcome.records
    assert (outcome.failure, records.outstanding, records.duplicates) == ("lost", 0, 0)
    assert sorted(records.errors) == list(range(records.issued // 2, records.issued))


@pytest.mark.parametrize("share", [40, 100])
@pytest.mark.parametrize("mode", ["performance", "accuracy", "TEST06"])
@pytest.mark.parametrize("scenario", ["server", "offline"])
def test_they_are_counted(tmp_path: Path, scenario: str, mode: str, share: int) -> None:
    plan = planned(tmp_path, scenario)
    audit = audit_config("TEST06") if mode == "TEST06" else None
    ran = "accuracy" if mode == "accuracy" else "performance"
    outcome = loadgen.run_test(plan, ran, Failing(share), 72, tmp_path, lambda _: None, audit=audit)  # type: ignore[arg-type]
    assert outcome.failure is None
    records = outcome.records
    assert records.outstanding == 0
    assert len(records.errors) >= share * records.issued // 100 - share
    logged = [json.loads(line[9:]) for line in (tmp_path / "mlperf_log_detail.txt").read_text().splitlines()]
    if ran == "performance":
        assert [line["value"] for line in logged if line["key"] == "num_errors"] == [len(records.errors)]
