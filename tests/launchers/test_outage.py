"""An MLflow server that dies in the middle of a sweep and comes back: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import mlflow_server
from tests.launchers.ended import wait_for
from tests.launchers.test_reuse import record_of, started

DURATIONS_S = (3, 3, 3, 200)  # the last one lasts until the server is back, whatever that takes
OVERRIDES = ["tracking.enabled=true", "tracking.interval_s=0.5", "scenario.target_qps=100",
             "scenario.min_duration_s=" + ",".join(map(str, DURATIONS_S))]  # fmt: skip


def ended(folder: Path) -> int:
    """How many jobs of the sweep have ended so far."""
    return sum(job["status"] == "finished" for job in record_of(folder)["jobs"])


@pytest.mark.timeout(900)
def test_what_was_not_taken_is_sent_when_the_server_is_back(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    port, folder = mlflow_server.free_port(), tmp_path / "sweep"
    there = f"http://127.0.0.1:{port}"
    client = MlflowClient(there)

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name("mlperf_exp")
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def statuses() -> list[str]:
        return sorted(run.info.status for run in runs())

    with contextlib.ExitStack() as stack:
        with mlflow_server.serving(tmp_path, port):
            sweep = stack.enter_context(started(folder, *OVERRIDES, f"tracking.uri={there}"))
            wait_for(lambda: len(runs()) > 1, 240)
        assert ended(folder) < 3, "the server died too late for this test to show anything"
        wait_for(lambda: ended(folder) == 3, 240)  # the sweep goes on without it
        with mlflow_server.serving(tmp_path, port):
            wait_for(lambda: statuses() == [*3 * ["FINISHED"], *2 * ["RUNNING"]], 240)
            sweep.send_signal(signal.SIGINT)
            out, err = sweep.communicate(timeout=240)
            assert sweep.returncode == 130, out + err
            found = {run.data.tags["mlperf_exp.run_id"]: run for run in runs()}
            assert found.keys() == {"sweep", "sweep-0", "sweep-1", "sweep-2", "sweep-3"}
            assert len(runs()) == len(found)  # none twice
            parent = found.pop("sweep")
            assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
            assert (parent.info.status, found["sweep-3"].info.status) == ("KILLED", "KILLED")
            for run_id, run in found.items():
                place = folder / run_id.removeprefix("sweep-")
                lines = [json.loads(line) for line in (place / "live.jsonl").read_text().splitlines()]
                sent = client.get_metric_history(run.info.run_id, "live/completed")
                assert [point.value for point in sent] == [line["completed"] for line in lines]
                result = json.loads((place / "result.json").read_text())
                assert run.data.metrics["queries"] == result["metrics"]["queries"]
                files = {file.path for file in client.list_artifacts(run.info.run_id)}
                assert {"result.json", "report.html", "live.jsonl"} <= files
