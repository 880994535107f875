"""The comparison as a command: what it takes, leaves out and names, writes, and its exit status."""

from __future__ import annotations

import copy
import csv
import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from sweeps import big, variant, write

from mlperf_exp.compare.__main__ import main

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"|`]]></svg>"


class Checked(HTMLParser):
    """Fails on tags that are not closed in their order, and on anything fetched from elsewhere."""

    VOID = frozenset({"meta", "br", "input", "circle", "path", "line", "polyline", "rect"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("img", "link", "iframe", "object")
        for name, value in attrs:
            assert name != "src"
            assert not name.startswith("on"), name
            assert name != "href" or not re.match(r"\s*(https?:|javascript:|//)", value or ""), value
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("img", "link")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def page(folder: Path) -> Checked:
    checked = Checked((folder / "compare.html").read_text())
    assert checked.scripts == 2, "the embedded facts, and the one script that the policy names"
    return checked


def curve(real: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [variant(real, qps=qps, seqs=64, seed=seed, **more) for qps in (2, 4, 8, 12, 20) for seed in range(3)]


def test_a_sweep_on_one_page(tmp_path: Path, real: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path / "sweep", *curve(real))), "--out", str(tmp_path / "out")]) == 0
    shown = page(tmp_path / "out")
    assert "15 runs compared" in shown.text
    assert "knee at 12 queries/s (highest load within the bounds; the next, 20, does not)" in shown.text
    titles = ("Tokens per second against TTFT p99", "Tokens per second against Energy per token",
              "TTFT p99 against load", "Energy per token of each configuration", "Where the time went")  # fmt: skip
    for title in titles:
        assert title in shown.text, title
    assert "Fastest: target_qps=" in shown.text
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert len(rows) == 15
    assert {row["scenario.target_qps"] for row in rows} == {"2", "4", "8", "12", "20"}
    assert float(rows[0]["joules_per_token"]) > 0
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert MarkdownIt("commonmark").enable("table").render(markdown).count("<tr>") > 15
    assert str(tmp_path / "out" / "compare.html") in capsys.readouterr().out


def test_a_real_run_alone(tmp_path: Path, real_run: Path) -> None:
    assert main([str(real_run), "--out", str(tmp_path / "out")]) == 0
    shown = page(tmp_path / "out")
    assert "1 run compared" in shown.text
    assert "No energy per token or sample was measured" in shown.text
    assert "report.html" in (tmp_path / "out" / "compare.html").read_text()


def test_what_cannot_be_compared_is_named(tmp_path: Path, real: dict[str, Any]) -> None:
    sweep = write(tmp_path / "sweep", *curve(real)[:3])
    (sweep / "half").mkdir()
    (sweep / "half" / "result.json").write_text(json.dumps(real)[:500])
    (sweep / "running").mkdir()
    (sweep / "running" / "config.yaml").write_text("model: x\n")
    (sweep / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "old", copy.deepcopy(real) | {"schema": 0}, {"run": {}}, {"schema": 1}, [])  # type: ignore[arg-type]
    other = variant(real)
    other["plan"]["config"]["model"]["name"] = "another_model"
    write(tmp_path / "other", other)
    folders = [str(tmp_path / name) for name in ("sweep", "empty", "old", "other")]
    assert main([*folders, "--out", str(tmp_path / "out")]) == 0
    text = page(tmp_path / "out").text
    assert "3 runs compared" in text
    words = ("half: its result.json is no whole JSON", "running: it has no result.json", "empty: it holds no run",
             "is of schema 0", "names no schema", "holds no configuration", "its model is another_model")  # fmt: skip
    for word in words:
        assert word in text, word
    assert main([*folders, "--model", "another_model", "--out", str(tmp_path / "out")]) == 0
    assert "1 run compared" in page(tmp_path / "out").text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "FOLDER: nothing to compare is named"),
        (["none"], "FOLDER: none is no folder"),
        (["empty"], "no run that can be compared"),
        (["sweep", "--baseline", "empty"], "--baseline: empty holds no run"),
        (["sweep", "--model", "gpt"], "--model: no run has gpt. Choose from: llama3_tiny"),
        (["--mlflow", "x", "--tracking-uri", "sqlite:///none.db"], "--tracking-uri: there is no"),
        (["--mlflow", "x", "--tracking-uri", "http://me:secret@host"], "--tracking-uri: holds credentials"),
    ],
)
def test_slips_are_told_in_one_line(
    tmp_path: Path, real: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], word: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sweep", variant(real))
    (tmp_path / "empty").mkdir()
    assert main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert word in last
    assert "secret" not in last


def test_everything_foreign_is_escaped(tmp_path: Path, real: dict[str, Any]) -> None:
    results = []
    for i, result in enumerate(curve(real)[:4]):
        result["run"] |= {"name": HOSTILE, "id": f"{HOSTILE}{i}", "error": HOSTILE}
        result["verdict"]["reasons"] = [HOSTILE]
        result["plan"]["config"]["scenario"]["target_qps"] = 2.0 * (i + 1)
        result["plan"]["config"]["backend"]["served_model"] = f"{HOSTILE}{i}"
        result["plan"]["config"]["model"]["name"] = HOSTILE
        result["environment"]["packages"][HOSTILE] = f"=1+{i}"
        results.append(result)
    main([str(write(tmp_path / "sweep", *results)), "--out", str(tmp_path / "out")])
    source = (tmp_path / "out" / "compare.html").read_text()
    assert page(tmp_path / "out").text.count("alert(1)") > 3, "it is shown, as text"
    assert source.lower().count("<script") == 2
    assert "<script" not in MarkdownIt("commonmark").enable("table").render(
        (tmp_path / "out" / "compare.md").read_text()
    )
    assert ",=1+" not in (tmp_path / "out" / "compare.csv").read_text(), "no formula for a spreadsheet"


def test_500_runs_in_seconds(tmp_path: Path, real: dict[str, Any]) -> None:
    sweep = big(tmp_path / "sweep", real)
    began = time.process_time()
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert time.process_time() - began < 30
    size = (tmp_path / "out" / "compare.html").stat().st_size
    assert size < 2_000_000
    text = page(tmp_path / "out").text
    assert "500 runs compared" in text
    assert "% of perfect scaling from 1 to 2 accelerators" in text


Make = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("factor", "status", "judged"),
    [(0.9, 3, "worse"), (1.0, 0, "within the noise"), (1.1, 0, "better")],
)
def test_a_baseline_and_what_is_beyond_its_noise(
    tmp_path: Path, real: dict[str, Any], capsys: pytest.CaptureFixture[str], factor: float, status: int, judged: str
) -> None:
    """Offered more than it takes, the system's throughput follows ``factor``; the noise is 1 %."""
    before = [variant(real, qps=30, seqs=64, seed=s) for s in range(4)]
    after = [variant(real, qps=30, seqs=64, seed=s, factor=factor, vllm="0.25.0") for s in range(10, 14)]
    for result in (*before, *after):
        for name in ("ttft_p99_ms", "tpot_p99_ms", "latency_p99_ms", "joules_per_token"):
            result["metrics"].pop(name)
    old, new = write(tmp_path / "old", *before), write(tmp_path / "new", *after)
    assert main([str(new), "--baseline", str(old), "--out", str(tmp_path / "out")]) == status
    said = capsys.readouterr().out
    assert ("worse: " in said) == (status == 3)
    rows = list(MarkdownIt("commonmark").enable("table").parse((tmp_path / "out" / "compare.md").read_text()))
    assert any(judged in token.content for token in rows)
    text = page(tmp_path / "out").text
    assert "pooled over 2 repeated configurations; 99 % intervals" in text
    assert "0.25.0" in text


def test_a_run_that_fails_or_is_no_longer_valid_is_worse(tmp_path: Path, real: dict[str, Any]) -> None:
    good = variant(real, qps=4)
    assert good["verdict"]["valid"]
    old = write(tmp_path / "old", good)
    invalid = variant(real, qps=4, vllm="0.25.0")
    invalid["verdict"] |= {"valid": False, "reasons": ["ROUGE is too low."]}
    assert main([str(write(tmp_path / "a", invalid)), "--baseline", str(old), "--out", str(tmp_path / "out")]) == 3
    failed = variant(real, qps=4, vllm="0.25.0")
    failed["run"] |= {"status": "failed", "error": "out of memory"}
    failed["metrics"] = {}
    assert main([str(write(tmp_path / "b", failed)), "--baseline", str(old), "--out", str(tmp_path / "out")]) == 3
    assert "out of memory" in page(tmp_path / "out").text
    other_load = variant(real, qps=8, factor=0.1)
    assert main([str(write(tmp_path / "c", other_load)), "--baseline", str(old), "--out", str(tmp_path / "out")]) == 0
    assert "of another model, data set or load are not held against it" in page(tmp_path / "out").text
    assert main([str(write(tmp_path / "d", variant(real, qps=4, noise=0))), "--baseline", str(old),
                 "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    assert "the noise is not known" in page(tmp_path / "out").text


def test_runs_that_mlflow_holds(
    tmp_path: Path, real_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    place = client.create_experiment("mine", artifact_location=str(tmp_path / "artifacts"))
    kept, empty = (client.create_run(place, tags={"model": "llama3_tiny"}).info.run_id for _ in range(2))
    client.log_artifact(kept, str(real_run / "result.json"))
    options = ["--tracking-uri", uri, "--experiment", "mine", "--out", "out"]
    assert main(["--mlflow", "tags.model = 'llama3_tiny'", *options]) == 0
    text = page(tmp_path / "out").text
    assert "1 run compared" in text
    assert f"MLflow run {empty}: MLflow holds no result.json of it" in text
    assert main(["--mlflow", "tags.model = oops", *options]) == 2
    assert main(["--mlflow", "tags.model = 'x'", *options[:2], "--experiment", "none"]) == 2
    assert "--experiment: " in capsys.readouterr().err.splitlines()[-1]
