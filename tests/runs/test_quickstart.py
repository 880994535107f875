"""The quick start on the golden model: tokens, text, ROUGE, GEN_LEN, logs, MLflow and report, through the real path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs_of_commands import Finished, run
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from mlperf_exp.data.accuracy_log import read_accuracy_log
from mlperf_exp.data.rouge import score
from mlperf_exp.tiny_llama import ARTICLES, ensure, golden, golden_tokens

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def articles() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(ARTICLES.read_text())
    return loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("model") / "llama3_tiny")


def test_exit_and_record(quickstart: Finished) -> None:
    assert quickstart.status == 0, quickstart.stderr
    result = quickstart.result
    assert result["run"]["status"] == "finished"
    assert result["run"]["error"] is None
    logged, metrics = result["tests"]["performance"]["loadgen"], result["metrics"]
    assert logged["generated_query_count"] == 504
    # A busy machine may miss the bounds; LoadGen's word must then be the one that the figures give.
    kept = metrics["ttft_p99_ms"] <= 2000 and metrics["tpot_p99_ms"] <= 100
    assert logged["result_validity"] == ("VALID" if kept else "INVALID")
    assert result["tests"]["performance"]["errors"] == 0
    for phase in ("prepare", "start", "warmup", "load", "drain", "accuracy", "stop", "score", "track", "total"):
        assert result["phases"][f"{phase}_s"] >= 0, phase
    # Nothing is hidden between the phases: together they are nearly the whole wall time.
    parts = sum(seconds for name, seconds in result["phases"].items() if name != "total_s")
    assert parts > 0.9 * result["phases"]["total_s"]


def test_short_and_open_runs_are_not_called_valid(quickstart: Finished) -> None:
    verdict = quickstart.result["verdict"]
    assert verdict["valid"] is False
    assert any("short run" in reason for reason in verdict["reasons"])
    assert verdict["accuracy"]["measured"] is True


def test_the_golden_model_passes_test06(quickstart: Finished) -> None:
    checked = quickstart.result["verdict"]["compliance"]["TEST06"]
    assert checked["passed"] is True, checked["reasons"]
    assert checked["checks"] == {"first_token": True, "end_of_text": True, "token_count": True}
    assert checked["figures"]["samples"] > 50


def test_every_token_is_golden(quickstart: Finished, model: Path, articles: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    outputs = read_accuracy_log(quickstart.folder / "accuracy" / "mlperf_log_accuracy.json")
    assert sorted(outputs) == list(range(len(articles)))
    for index, article in enumerate(articles):
        assert outputs[index].tolist() == golden_tokens(tokenizer, article["input"]), index


def test_scores_are_those_of_the_golden_texts(
    quickstart: Finished, model: Path, articles: list[dict[str, Any]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    expected = score(
        {i: golden_tokens(tokenizer, article["input"]) for i, article in enumerate(articles)},
        [article["output"] for article in articles],
        lambda batch: list(tokenizer.batch_decode(batch, skip_special_tokens=True)),
        processes=1,
    ).metrics
    metrics = quickstart.result["metrics"]
    assert {name: metrics[name] for name in expected} == expected
    # Independently of our scoring: characters of the texts, each sentence on a line of its own.
    texts = [golden(tokenizer, article["input"]) for article in articles]
    assert metrics["gen_num"] == len(articles)
    assert abs(metrics["gen_len"] - sum(map(len, texts))) <= len(articles)
    assert 30 < metrics["rouge1"] < 80


def test_records_of_queries_agree_with_loadgen(quickstart: Finished) -> None:
    result = quickstart.result
    table = pq.read_table(quickstart.folder / "performance" / "queries.parquet").to_pandas()
    logged = result["tests"]["performance"]["loadgen"]
    assert len(table) == logged["generated_query_count"] == result["metrics"]["queries"]
    assert table["error"].isna().all()
    assert (table["latency_ms"] >= table["ttft_ms"]).all()
    # LoadGen counts from the scheduled time, we from sending: its figures are the larger ones, by the issue delay.
    assert 0 <= logged["result_first_token_50.00_percentile_latency_ns"] / 1e6 - table["ttft_ms"].median() < 50
    assert np.isclose(table["tokens"].sum(), result["metrics"]["output_tokens"])


def test_everything_is_in_the_folder(quickstart: Finished) -> None:
    for mode in ("performance", "accuracy"):
        for name in ("summary.txt", "detail.txt", "accuracy.json", "trace.json"):
            assert (quickstart.folder / mode / f"mlperf_log_{name}").exists(), (mode, name)
        assert "target_qps" in (quickstart.folder / mode / "user.conf").read_text()
    names = {item["path"] for item in quickstart.result["artifacts"]}
    assert {"report.html", "report.md", "config.yaml", "performance/queries.parquet"} <= names
    page = (quickstart.folder / "report.html").read_text()
    assert "short run" in page.lower()
    assert "llama3_tiny" in page


def test_mlflow_has_the_run(quickstart: Finished) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{quickstart.folder.parent}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("mlperf_exp")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    stored, result = runs[0], quickstart.result
    assert stored.info.status == "FINISHED"
    for name, value in result["metrics"].items():
        assert stored.data.metrics[name] == pytest.approx(value), name
    assert stored.data.params["scenario.target_qps"] == str(result["plan"]["config"]["scenario"]["target_qps"])
    listed = {item.path for item in client.list_artifacts(stored.info.run_id)}
    assert {"report.html", "result.json", "performance", "accuracy"} <= listed
    assert any(name.startswith("live/") for name in stored.data.metrics)


def test_one_changed_weight_is_seen(tmp_path: Path, model: Path, articles: list[dict[str, Any]]) -> None:
    """The same path on a checkpoint in which one number was changed gives other tokens for every sample."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][1, 120] = -20  # of 1.2 million: how strongly end-of-text answers to one dimension
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = run(
        tmp_path / "run",
        "experiment=quickstart",
        f"model.path={broken}",
        "scenario.mode=accuracy",
        "scenario=offline",
        "dataset.samples=16",
        "tracking.enabled=false",
    )
    assert done.status == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    outputs = read_accuracy_log(done.folder / "accuracy" / "mlperf_log_accuracy.json")
    same = [outputs[i].tolist() == golden_tokens(tokenizer, articles[i]["input"]) for i in range(16)]
    assert not any(same)
    assert any("performance" in reason for reason in done.result["verdict"]["reasons"])
