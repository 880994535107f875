"""LoadGen's accuracy log is read back, and a broken one is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlperf_exp.data.accuracy_log import read_accuracy_log
from mlperf_exp.errors import RunFailed


def row(index: int, tokens: list[int], seq: int = 0) -> dict[str, object]:
    data = np.array(tokens, dtype=np.int32).tobytes().hex().upper()  # as LoadGen writes it
    return {"seq_id": seq, "qsl_idx": index, "data": data, "token_count": len(tokens)}


def test_rows_come_back_and_the_first_of_a_sample_wins(tmp_path: Path) -> None:
    path = tmp_path / "mlperf_log_accuracy.json"
    lines = [json.dumps(r) for r in (row(3, [1, 2, 128009]), row(0, []), row(3, [9]), row(1, [-1]))]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    outputs = read_accuracy_log(path)
    assert {index: tokens.tolist() for index, tokens in outputs.items()} == {3: [1, 2, 128009], 0: [], 1: [-1]}
    assert list(outputs) == [3, 0, 1]
    assert {tokens.dtype for tokens in outputs.values()} == {np.dtype(np.int32)}


def test_a_performance_tests_log_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("[\n]\n")
    assert read_accuracy_log(path) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps([row(0, [1, 2]), row(1, [3])])[:-30], "cut short"),
        ("", "cut short"),
        ('[{"seq_id": 0, "data": "00"}]', "missing required field `qsl_idx`"),
        (json.dumps([row(0, [1]), {**row(7, [1]), "data": "0102"}]), "sample 7 are no int32"),
        (json.dumps([{**row(7, [1]), "data": "0102030Z"}]), "sample 7 are no int32"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(RunFailed, match=words) as caught:
        read_accuracy_log(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="No such file"):
        read_accuracy_log(tmp_path / "log.json")
