"""Runs in real MLflow, by SQLite and by a server, with outages and kills: one MLflow run, no value twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlperf_exp.config import Tracking
from mlperf_exp.credentials import redact
from mlperf_exp.files import write_json
from mlperf_exp.live_log import LiveLog
from mlperf_exp.records import Live
from mlperf_exp.track import content
from mlperf_exp.track.mirror import Mirror, prepare_environment
from mlperf_exp.track.tracker import Tracker, absolute_uri
from tests import mlflow_server

EXPERIMENT = "tests"
NAN = float("nan")
CONFIG = {
    "model": {"name": "llama3_tiny", "weights": "pretrained", "target": None, "long": "x" * 7000},
    "dataset": {"name": "articles", "path": None, "samples": 64},
    "hw": {"name": "cpu", "peak_tflops": {"bf16": 1.5}},
    "scenario": {"name": "server", "target_qps": 4.0},
    "backend": {"name": "openai", "urls": ["http://user:pa55@host:8000/v1"]},
    "tracking": {"uri": "sqlite:///outputs/mlflow.db", "experiment": EXPERIMENT},
    "api_key": "pa55",
}
FILES = {
    "performance/mlperf_log_summary.txt": "summary",
    "performance/mlperf_log_detail.txt": "detail",
    "performance/mlperf_log_accuracy.json": "[]",
    "performance/mlperf_log_trace.json": "",
    "performance/queries.parquet": "PAR1",
    "plots/ttft.png": "png",
    "report.html": "<h1>report</h1>",
    "report.md": "# report",
    "config.yaml": "seed: 1",
    ".hydra/config.yaml": "api_key: pa55",
}


def write_result(run_dir: Path, run_id: str, status: str = "finished") -> None:
    for name, text in FILES.items():
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text(text)
    result = {
        "schema": 1,
        "run": {
            "id": run_id,
            "name": "a run",
            "status": status,
            "error": None,
            "command": ["python", "-m", "mlperf_exp"],
            "overrides": ["hw=cpu", "backend.urls=[http://user:pa55@host]"],
            "started_at": "2026-11-23T22:15:01+00:00",
            "ended_at": "2026-11-23T22:16:01+00:00",
        },
        "plan": {"config": CONFIG, "engine": {"max_num_seqs": 16}, "modes": ["performance"]},
        "environment": {"git_commit": "0123abc", "hostname": "here"},
        "verdict": {"valid": False, "reasons": ["Too short.", "Too few."], "accuracy": {"measured": False}},
        "metrics": {"tokens_per_second": 123.5, "queries": 64, "rouge1": None},
        "phases": {"start_s": 1.5, "total_s": 60.0},
        "artifacts": [{"path": name, "bytes": 1, "sha256": ""} for name in FILES],
    }
    write_json(run_dir / "result.json", result)


def write_live(run_dir: Path, first: int, count: int) -> None:
    with LiveLog(run_dir / "live.jsonl") as log:
        for i in range(first, first + count):
            log.append("performance", Live(float(i), i, i, 0, 10 * i, 4.0, 40.0, 3.0, 5.0, NAN, NAN), 64)
            time.sleep(0.003)  # a point's identity is its time in milliseconds
    assert log.error is None


def wait_for(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def resend(run_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlperf_exp.track", str(run_dir), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: its schema takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/outputs/mlflow.db"


@pytest.fixture(scope="module")
def client(uri: str) -> Any:
    """MLflow's own client, to look at what came."""
    prepare_environment(uri)
    from mlflow.tracking import MlflowClient

    Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


@pytest.fixture
def tracking(uri: str) -> Tracking:
    return Tracking(uri=uri, experiment=EXPERIMENT, interval_s=0.3)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def runs_of(client: Any, run_id: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`mlperf_exp.run_id` = '{run_id}'"))


def the_run(client: Any, run_id: str) -> Any:
    runs = runs_of(client, run_id)
    assert len(runs) == 1, "one MLflow run for one run"
    return client.get_run(runs[0].info.run_id)


def live_values(client: Any, run: Any) -> list[float]:
    return [metric.value for metric in client.get_metric_history(run.info.run_id, "live/completed")]


def artifacts(client: Any, run: Any, folder: str | None = None) -> set[str]:
    found = set()
    for entry in client.list_artifacts(run.info.run_id, folder):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def mirror(run_dir: Path, uri: str, run_id: str) -> Mirror:
    options = {"uri": uri, "experiment": EXPERIMENT, "interval_s": 1.0, "run_id": run_id, "run_name": "a run"}
    return Mirror(run_dir, {**options, "started_at": time.time()})


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_run_is_kept_whole(client: Any, tracking: Tracking, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as proxy:
        for name in ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS"):
            monkeypatch.delenv(name, raising=False)  # MLflow is silent under tests anyway: take that away
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, address(proxy))
        tracker = Tracker.start(run_dir, tracking, "whole", "a run", {"sweep": "s1"}, {"model": {"name": "tiny"}})
        write_live(run_dir, 0, 60)
        running = wait_for(lambda: runs_of(client, "whole"))[0]
        wait_for(lambda: len(live_values(client, running)) == 60)
        running = the_run(client, "whole")
        assert running.info.status == "RUNNING"
        assert running.data.params == {"model.name": "tiny"}
        assert running.data.tags["sweep"] == "s1"
        assert tracker.pid is not None
        os.killpg(tracker.pid, signal.SIGINT)  # Ctrl-C is for the run to decide upon
        write_live(run_dir, 60, 3)
        write_result(run_dir, "whole")
        outcome = tracker.finish(240)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()  # nobody was called
    assert outcome.ok, outcome.message
    run = the_run(client, "whole")
    assert outcome.mlflow_run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.info.end_time == 1795472161000  # ended_at, not the time of sending
    assert run.data.metrics["tokens_per_second"] == 123.5
    assert run.data.metrics["phase/total_s"] == 60.0
    assert "rouge1" not in run.data.metrics
    assert "live/tpot_p50_ms" not in run.data.metrics  # never a number
    assert live_values(client, run) == list(range(63))
    params = run.data.params
    assert params["engine.max_num_seqs"] == "16"
    assert params["hw.peak_tflops.bf16"] == "1.5"
    assert params["model.target"] == "null"
    assert len(params["model.long"]) == 6000
    tags = run.data.tags
    assert (tags["verdict"], tags["status"], tags["git_commit"]) == ("invalid", "finished", "0123abc")
    assert (tags["model"], tags["hw"], tags["scenario"]) == ("llama3_tiny", "cpu", "server")
    assert tags["verdict_reasons"] == "Too short. Too few."
    assert "pa55" not in json.dumps([params, tags])
    assert artifacts(client, run) == {*FILES, "result.json", "live.jsonl"} - {".hydra/config.yaml"}
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "articles"
    assert not (run_dir / "tracking.log").exists(), "nothing to say"
    again = resend(run_dir)
    assert (again.returncode, "MLflow has it all" in again.stdout) == (0, True)


def test_a_killed_tracker_is_replaced(client: Any, tracking: Tracking, run_dir: Path) -> None:
    tracker = Tracker.start(run_dir, tracking, "killed-tracker", "a run")
    write_live(run_dir, 0, 20)
    wait_for(lambda: runs_of(client, "killed-tracker") and live_values(client, the_run(client, "killed-tracker")))
    assert tracker.pid is not None
    os.kill(tracker.pid, signal.SIGKILL)
    write_live(run_dir, 20, 20)
    write_result(run_dir, "killed-tracker")
    outcome = tracker.finish(240)
    assert outcome.ok, outcome.message
    run = the_run(client, "killed-tracker")
    assert run.info.status == "FINISHED"
    assert live_values(client, run) == list(range(40))


def test_a_killed_run_is_marked(client: Any, uri: str, run_dir: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from mlperf_exp.config import Tracking\nfrom mlperf_exp.track.tracker import Tracker\n"
        f"tracking = Tracking(uri={uri!r}, experiment={EXPERIMENT!r})\n"
        f"tracker = Tracker.start(Path({str(run_dir)!r}), tracking, 'lost', 'a run')\n"
        "print(tracker.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        tracker = int(parent.stdout.readline())
        (run_dir / "config.yaml").write_text("seed: 1")
        write_live(run_dir, 0, 5)
        wait_for(lambda: runs_of(client, "lost"))
        parent.kill()
    run = wait_for(lambda: [r for r in runs_of(client, "lost") if r.info.status == "KILLED"])[0]
    wait_for(lambda: not psutil.pid_exists(tracker))
    assert run.data.tags["status"] == "interrupted"
    assert live_values(client, run) == list(range(5))
    assert artifacts(client, run) == {"config.yaml", "live.jsonl"}


def test_a_run_that_goes_on_waits_for_what_still_sends_the_killed_one(
    client: Any, tracking: Tracking, run_dir: Path
) -> None:
    folder = os.open(run_dir, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as the tracking process of the killed run does
    write_json(run_dir / "mlflow_run.json", {"uri": tracking.uri, "mlflow_run_id": None, "ended": "lost"})
    tracker = Tracker.start(run_dir, tracking, "goes-on", "a run")
    write_live(run_dir, 0, 3)
    write_result(run_dir, "goes-on")
    assert tracker._process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        tracker._process.wait(8)
    os.close(folder)
    outcome = tracker.finish(240)
    assert outcome.ok, outcome.message
    assert live_values(client, the_run(client, "goes-on")) == [0, 1, 2]


def test_a_run_that_writes_no_result_is_marked(client: Any, tracking: Tracking, run_dir: Path) -> None:
    tracker = Tracker.start(run_dir, tracking, "no-result", "a run")
    outcome = tracker.finish(240)
    assert outcome.ok, outcome.message
    run = the_run(client, "no-result")
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "interrupted")


def test_every_step_can_be_repeated(client: Any, uri: str, run_dir: Path) -> None:
    """Killed before the MLflow run's id was written down, and again before the end was: the worst moments."""
    write_live(run_dir, 0, 120)  # more than one batch
    write_result(run_dir, "repeated")
    for attempt in range(3):
        result = json.loads((run_dir / "result.json").read_text())
        result["phases"]["total_s"] += 5  # a run writes it again when tracking has ended
        result["run"]["ended_at"] = f"2026-11-23T22:17:0{attempt}+00:00"
        write_json(run_dir / "result.json", result)
        some = mirror(run_dir, uri, "repeated")
        assert some.attempt(some.send_live, some.send_result), (attempt, some.error)
        (run_dir / "mlflow_run.json").unlink()
    run = the_run(client, "repeated")
    assert live_values(client, run) == list(range(120))
    assert len(client.get_metric_history(run.info.run_id, "tokens_per_second")) == 1
    assert run.data.metrics["phase/total_s"] == result["phases"]["total_s"], "the last word counts"
    assert len(run.inputs.dataset_inputs) == 1


def test_torn_lines_of_live_metrics_are_left_out(client: Any, uri: str, run_dir: Path) -> None:
    write_live(run_dir, 0, 1)
    with (run_dir / "live.jsonl").open("a") as file:
        file.write('{"at": 17955, "phase"\n[1]\n"x"\n{"at": "soon", "phase": "x"}\n')
    write_live(run_dir, 1, 1)
    with (run_dir / "live.jsonl").open("a") as file:
        file.write('{"at": 1')  # being written
    some = mirror(run_dir, uri, "torn")
    assert some.attempt(some.send_live), some.error
    assert live_values(client, the_run(client, "torn")) == [0, 1]


@pytest.mark.parametrize(("status", "expected"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_status(client: Any, uri: str, run_dir: Path, status: str, expected: str) -> None:
    write_result(run_dir, f"status-{status}", status)
    some = mirror(run_dir, uri, f"status-{status}")
    assert some.attempt(some.send_result), some.error
    run = the_run(client, f"status-{status}")
    assert (run.info.status, run.data.tags["status"]) == (expected, status)


def test_a_run_deleted_in_mlflow_is_not_sent_again(client: Any, uri: str, run_dir: Path) -> None:
    write_result(run_dir, "deleted")
    some = mirror(run_dir, uri, "deleted")
    assert some.attempt(some.send_live), some.error
    client.delete_run(some.run_id)
    again = mirror(run_dir, uri, "deleted")
    assert not again.attempt(again.send_result)
    assert "was deleted there" in (again.error or "")


def test_a_refusing_server_costs_seconds_and_the_run_can_be_sent_later(client: Any, uri: str, run_dir: Path) -> None:
    with listening() as server:
        there = address(server)
    tracker = Tracker.start(run_dir, Tracking(uri=there, experiment=EXPERIMENT), "refused", "a run")
    write_live(run_dir, 0, 5)
    write_result(run_dir, "refused")
    outcome = tracker.finish(240)
    assert not outcome.ok
    assert outcome.message.startswith(f"tracking.uri: MLflow at {there}: it refuses connections. The run is kept in")
    assert "\n" not in outcome.message
    assert "refuses" in (tracker.problem() or "")
    sent = resend(run_dir, "--uri", uri)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert live_values(client, the_run(client, "refused")) == list(range(5))


def test_a_hanging_server_is_given_up_in_time(run_dir: Path) -> None:
    with listening() as server:
        tracker = Tracker.start(run_dir, Tracking(uri=address(server)), "hanging", "a run")
        write_result(run_dir, "hanging")
        outcome = tracker.finish(3)
        assert not outcome.ok
        assert f"MLflow at {address(server)} did not answer within 3 s" in outcome.message
        assert f"python -m mlperf_exp.track {run_dir}" in outcome.message
        assert 2.5 < outcome.seconds < 10
        assert tracker.pid is not None
        assert not psutil.pid_exists(tracker.pid)


@pytest.mark.parametrize("wrong", ["gopher://there", "sqlite:////proc/no/mlflow.db"])
def test_a_wrong_uri_is_one_line(run_dir: Path, wrong: str) -> None:
    some = mirror(run_dir, wrong, "wrong")
    assert not some.attempt(some.send_live)
    assert some.error
    assert "\n" not in some.error
    assert json.loads((run_dir / "mlflow_run.json").read_text())["error"] == some.error


def test_credentials_in_the_uri_are_not_used_and_not_written(run_dir: Path) -> None:
    tracker = Tracker.start(run_dir, Tracking(uri="http://user:pa55@host"), "secret", "a run")
    assert tracker.pid is None
    outcome = tracker.finish(5)
    assert not outcome.ok
    assert "MLFLOW_TRACKING_USERNAME" in outcome.message
    assert "pa55" not in outcome.message
    assert list(run_dir.iterdir()) == []


def test_tracking_can_be_off(run_dir: Path) -> None:
    tracker = Tracker.start(run_dir, Tracking(enabled=False), "off", "a run")
    assert tracker.finish(5).ok
    assert tracker.problem() is None
    assert list(run_dir.iterdir()) == []


def test_an_untracked_run_can_be_sent_later(client: Any, uri: str, run_dir: Path) -> None:
    write_result(run_dir, "untracked")
    sent = resend(run_dir, "--uri", uri)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert the_run(client, "untracked").info.status == "FINISHED"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    refused = resend(tmp_path)
    assert refused.returncode == 1
    assert "neither tracking.json nor result.json" in refused.stderr


def test_a_run_folder_that_vanished_does_not_raise(tracking: Tracking, tmp_path: Path) -> None:
    tracker = Tracker.start(tmp_path / "gone", tracking, "gone", "a run")
    outcome = tracker.finish(5)
    assert not outcome.ok
    assert "did not start" in outcome.message


def test_runs_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/new/mlflow.db", experiment=EXPERIMENT)
    folders = [tmp_path / f"run{i}" for i in range(2)]
    for folder in folders:
        folder.mkdir()
        write_result(folder, folder.name)
    trackers = [Tracker.start(folder, tracking, folder.name, "a run") for folder in folders]
    outcomes = [tracker.finish(240) for tracker in trackers]
    assert all(outcome.ok for outcome in outcomes), outcomes
    assert len(list((tmp_path / "new" / "mlartifacts").iterdir())) == 2
    for folder in folders:
        log = folder / "tracking.log"
        assert not log.exists(), log.read_text()  # not even a retry


@pytest.mark.timeout(900)
def test_a_server_killed_in_the_middle_and_restarted(run_dir: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    with listening() as free:
        there, port = address(free), free.getsockname()[1]
    tracking = Tracking(uri=there, experiment=EXPERIMENT, interval_s=0.3)
    client = MlflowClient(there)
    with mlflow_server.serving(tmp_path, port):
        tracker = Tracker.start(run_dir, tracking, "outage", "a run")
        write_live(run_dir, 0, 20)
        wait_for(lambda: runs_of(client, "outage") and len(live_values(client, the_run(client, "outage"))) == 20)
    write_live(run_dir, 20, 20)
    wait_for(tracker.problem)
    write_result(run_dir, "outage")
    outcome = tracker.finish(240)
    assert not outcome.ok
    assert "refuses connections" in outcome.message
    with mlflow_server.serving(tmp_path, port):
        sent = resend(run_dir)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        run = the_run(client, "outage")
        assert run.info.status == "FINISHED"
        assert live_values(client, run) == list(range(40))
        assert artifacts(client, run) == {*FILES, "result.json", "live.jsonl"} - {".hydra/config.yaml"}


def test_the_measured_process_imports_no_mlflow() -> None:
    code = "import sys, mlperf_exp.track.tracker, mlperf_exp.progress; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_relative_places_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///outputs/mlflow.db") == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert absolute_uri("sqlite:///a.db?timeout=5") == f"sqlite:///{tmp_path}/a.db?timeout=5"
    for same in ("sqlite:////a/b.db", "sqlite:///:memory:", "http://host:5000", "postgresql://host/db", "/runs"):
        assert absolute_uri(same) == same


def test_secrets_are_redacted() -> None:
    assert redact("a=[http://u:p@h/x,http://h/@x]") == "a=[http://***@h/x,http://h/@x]"
    flat = content.flatten({"hf_token": "t", "max_tokens": 4, "a": {"api_key": "k", "api_key_env": "NAME"}, "e": {}})
    assert flat == {"hf_token": "***", "max_tokens": "4", "a.api_key": "***", "a.api_key_env": "NAME", "e": "{}"}


def test_keys_that_mlflow_refuses_are_mended() -> None:
    assert content.flatten({"a b": {"c=d|e": True}}) == {"a b.c_d_e": "true"}


def test_files_outside_the_run_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "run" / "more.txt").write_text("x")
    listed = {"artifacts": [{"path": "../other.txt"}, {"path": "more.txt"}, {"path": "missing.txt"}]}
    assert content.files(tmp_path / "run", listed) == [Path("more.txt")]


def test_the_digest_of_a_data_file_is_its_own(tmp_path: Path) -> None:
    file = tmp_path / "data.json"

    def source(text: str) -> content.DataSource | None:
        file.write_text(text)
        return content.data_source({"plan": {"config": {"dataset": {"name": "d", "path": str(file)}}}})

    one, other = source("1"), source("2")
    assert one is not None
    assert other is not None
    assert one.digest != other.digest
    assert one == source("1")
    assert content.data_source({}) is None
