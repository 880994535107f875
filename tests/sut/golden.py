"""The answers that real engines over the tiny model must give, however many there are."""

from __future__ import annotations

import json
from pathlib import Path

from mlperf_exp.data.accuracy_log import read_accuracy_log
from mlperf_exp.tiny_llama import ARTICLES, ensure, golden_tokens
from tests.runs.runs_of_commands import Finished


def assert_golden(done: Finished, replicas: int, folder: Path) -> None:
    """The run ended well; each answer has the golden tokens, and each replica gave its share of them."""
    from transformers import AutoTokenizer

    assert done.status == 0, done.stderr
    result = done.result
    assert (result["metrics"]["replicas"], result["metrics"]["errors"]) == (replicas, 0)
    assert result["metrics"]["replica_share_min"] > 0.5
    assert result["verdict"]["accuracy"]["measured"] is True
    tokenizer = AutoTokenizer.from_pretrained(str(ensure(folder / "model" / "llama3_tiny")))
    outputs = read_accuracy_log(done.folder / "accuracy" / "mlperf_log_accuracy.json")
    articles = json.loads(ARTICLES.read_text())
    assert sorted(outputs) == list(range(len(articles)))
    for index, article in enumerate(articles):
        assert outputs[index].tolist() == golden_tokens(tokenizer, article["input"]), index
