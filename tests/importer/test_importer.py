"""Files of other benchmarks in the experiment: the figures under this project's names, marked, without a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlperf_exp.importer.__main__ import main
from mlperf_exp.report import write_report

FILES = Path(__file__).parent / "files"
WANTED = {  # figures read off the files by hand
    "vllm": {
        "completed": 40.0, "errors": 0.0, "queries": 40.0, "target_qps": 20.0, "ttft_p50_ms": 43.337450,
        "ttft_p99_ms": 125.963570, "tpot_p90_ms": 1.024217, "latency_p99_ms": 131.450394, "latency_mean_ms": 58.414053,
        "output_tokens_mean": 16.0,
    },
    "guidellm": {
        "samples_per_second": 9.8, "tokens_per_second": 1254.4, "ttft_p99_ms": 210.5, "tpot_p99_ms": 19.5,
        "latency_p99_ms": 2400.0, "latency_mean_ms": 1600.0, "errors": 2.0, "completed": 590.0, "target_qps": 10.0,
    },
    "aiperf": {
        "samples_per_second": 9.765909, "tokens_per_second": 517.593158, "ttft_p99_ms": 1235.925458,
        "tpot_p50_ms": 14.753042, "latency_p90_ms": 1809.298786, "errors": 0.0, "completed": 60.0, "target_qps": 10.0,
        "output_tokens_mean": 53.0,
    },
    "endpoints": {
        "samples_per_second": 20.191919, "tokens_per_second": 2301.222222, "ttft_p99_ms": 81.666184,
        "ttft_p999_ms": 119.316175, "tpot_p99_ms": 12.707118, "latency_p50_ms": 1155.4216, "errors": 1.0,
        "completed": 2000.0, "queries": 2001.0, "target_qps": 20.0, "prompt_tokens_mean": 848.0655,
        "output_tokens_mean": 113.9105,
    },
}  # fmt: skip


def imported(file: Path, runs: Path, *words: str) -> list[Path]:
    assert main([str(file), "--runs", str(runs), "--no-tracking", *words]) == 0
    return sorted(runs.iterdir(), key=lambda path: path.name)


@pytest.mark.parametrize("name", WANTED)
def test_figures_have_our_names_and_units(tmp_path: Path, name: str) -> None:
    folder = imported(FILES / f"{name}.json", tmp_path / "runs")[0]
    result = json.loads((folder / "result.json").read_text())
    for metric, value in WANTED[name].items():
        assert result["metrics"][metric] == pytest.approx(value), metric
    assert result["schema"] == 1 and result["run"]["status"] == "finished"
    assert result["verdict"]["valid"] is False
    (reason,) = result["verdict"]["reasons"]
    assert reason.startswith(f"imported from {result['run']['foreign']}: not run by LoadGen")
    assert result["environment"]["hostname"] is None  # where it was made is not known
    assert (folder / "foreign" / f"{name}.json").read_bytes() == (FILES / f"{name}.json").read_bytes()
    write_report(folder, result)  # the page can be drawn
    assert "imported from" in (folder / "report.html").read_text()


def test_vllms_own_file_agrees_with_itself(tmp_path: Path) -> None:
    """The rates must be those of its counts and its duration."""
    given = json.loads((FILES / "vllm.json").read_text())
    result = json.loads((imported(FILES / "vllm.json", tmp_path / "runs")[0] / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["samples_per_second"] == pytest.approx(given["completed"] / given["duration"], rel=1e-6)
    assert metrics["tokens_per_second"] == pytest.approx(given["total_output_tokens"] / given["duration"], rel=1e-6)
    assert 0 < metrics["ttft_p50_ms"] <= metrics["ttft_p99_ms"]
    assert metrics["target_qps"] == given["request_rate"]


def test_a_file_with_several_results_and_one_imported_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = imported(FILES / "guidellm.json", tmp_path / "runs")
    assert second.name == f"{first.name}-1"
    assert json.loads((second / "result.json").read_text())["metrics"]["samples_per_second"] == 50.0
    assert main([str(FILES / "guidellm.json"), "--runs", str(tmp_path / "runs"), "--no-tracking"]) == 2
    assert "was imported before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON, or cut short"),
        ("[1]", "it holds no JSON object"),
        ('{"a": 1}', "of no known format (vllm, guidellm, aiperf, endpoints)"),
        ('{"benchmarks": []}', "without results"),
        ('{"benchmarks": [{"metrics": 3}]}', "a broken result of guidellm"),
        ('{"benchmarks": [{"metrics": {}}]}', "in which nothing finished"),
        ('{"request_throughput": 0, "completed": 0, "model_id": "m"}', "in which nothing finished"),
        ('{"request_throughput": 1, "completed": 1, "model_id": "m", "date": "soon"}', "time data"),
        ('{"request_throughput": {"avg": 1}, "was_cancelled": true}', "a result of aiperf that was cancelled"),
        ('{"n_samples_issued": 3, "qps": 1, "complete": false, "state": "interrupted"}', "its end (interrupted)"),
        ('{"n_samples_issued": 3, "qps": 1, "n_samples_completed": 3, "ttft": {"percentiles": 5}}', "a broken result"),
    ],
)
def test_other_files(tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    assert main([str(FILES / "aiperf.json"), str(file), "--runs", str(tmp_path / "runs"), "--no-tracking"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said, said
    assert not (tmp_path / "runs").exists()  # the good file beside it was not imported by half


def test_files_that_cannot_be_read_and_wrong_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert main([str(binary)]) == 2
    assert "is no text" in capsys.readouterr().err
    assert main([str(FILES / "aiperf.json"), "--format", "vllm", "--no-tracking"]) == 2
    assert "is no result of vllm" in capsys.readouterr().err
    assert main([str(FILES / "aiperf.json"), "--uri", "http://me:secret@host"]) == 2
    said = capsys.readouterr().err
    assert "MLFLOW_TRACKING_USERNAME" in said and "secret" not in said


def test_it_stands_in_mlflow_beside_the_others(tmp_path: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert main([str(FILES / "endpoints.json"), "--runs", str(tmp_path / "runs"), "--uri", uri]) == 0
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("mlperf_exp")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["foreign"] == "MLCommons endpoints" and run.data.tags["verdict"] == "invalid"
    assert run.data.metrics["ttft_p99_ms"] == pytest.approx(81.666184)
    assert "foreign" in {item.path for item in client.list_artifacts(run.info.run_id)}
