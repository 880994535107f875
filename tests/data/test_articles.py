"""The articles that the project ships: MLCommons' schema, and what makes them a data set worth running."""

from __future__ import annotations

import json

import pytest

from mlperf_exp.data.cnn_dailymail import TEMPLATE
from mlperf_exp.tiny_llama import ARTICLES

ROWS = json.loads(ARTICLES.read_text(encoding="utf-8"))


def test_there_are_enough_and_all_differ():
    assert len(ROWS) == 72
    for field in ("input", "output"):
        assert len({row[field] for row in ROWS}) == len(ROWS)
    assert len({row["input"][:30] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["input"][:20])
def test_each_is_a_lead_with_paragraphs_and_a_summary(row):
    assert set(row) == {"instruction", "input", "output"}
    assert row["instruction"] == {"llama": TEMPLATE}
    article, summary = row["input"], row["output"]
    assert article == article.strip()
    assert summary == summary.strip()
    assert 150 <= len(article.split()) <= 500
    paragraphs = article.split("\n\n")
    assert 4 <= len(paragraphs) <= 8
    assert all(p == p.strip() and "\n" not in p and p.endswith((".", '."', "?")) for p in paragraphs)
    assert 15 <= len(paragraphs[0].split()) <= 140
    assert 15 <= len(summary.split()) <= 60
    assert "\n" not in summary
    assert summary not in article
