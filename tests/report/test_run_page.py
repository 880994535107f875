from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from mlperf_exp.report import write_report
from mlperf_exp.report.__main__ import main
from mlperf_exp.report.render import escape_markdown

HOSTILE = "<script>alert(1)</script><svg onload=alert(2)>\"'|`](javascript:x) {{ 7 * 7 }} \x1b[31m\x00"
VOID = {"meta", "br", "hr", "img", "link", "input"}
ORDER = ["verdict", "figures", "rates", "accuracy", "latency", "time", "phases", "insight", "plan", "configuration",
         "environment", "artifacts"]  # fmt: skip
CHARTS = {"ttft", "tpot", "latency", "throughput", "in_flight", "phases"}
RunFolder = Callable[..., Path]


class Page(HTMLParser):
    """A page's tags, attributes and text by section; fails on a tag that is not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") if tag == "section" else None))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self._open):
            return
        section = next((name for _, name in reversed(self._open) if name), "head")
        self.sections[section] = " ".join([*self.sections.get(section, "").split(), *data.split()])


def hostile(value: Any) -> Any:
    """``value`` with something nasty at both ends of every text in it, but for what the program compares."""
    if isinstance(value, dict):
        return {k: v if k == "status" else hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return f"{HOSTILE}{value}{HOSTILE}" if isinstance(value, str) else value


def test_page_says_all_in_its_order(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result)
    written = write_report(folder, result)
    assert written[:2] == [folder / "report.html", folder / "report.md"]
    assert {path.stem for path in written[2:]} == CHARTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])
    page = Page(folder / "report.html")
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ORDER
    said = page.sections
    assert "INVALID" in said["verdict"]
    assert "TPOT p99 107 ms is over 100 ms: lower scenario.target_qps (now 22)." in said["verdict"]
    assert "Short run: set to 3 min of load, MLPerf asks for 10 min" in said["verdict"]
    assert "TTFT p99 1,621 ms ≤ 2,000 ms ✓ pass" in said["figures"]
    assert "TPOT p99 107.3 ms ≤ 100 ms ✗ fail" in said["figures"]
    assert "Errors 0 none allowed ✓ pass" in said["figures"]
    assert "21.37 samples/s" in said["rates"]
    assert "12.90 samples/s" in said["rates"]
    assert "5 min 30 s" in said["rates"]
    assert "13,368 samples would take 17 min 16 s" in said["rates"]
    assert "ROUGE-Lsum 35.1200 ≥ 35.43507 ✗ fail" in said["accuracy"]
    assert "GEN_LEN (characters) 8,167,644 7,350,880 to 8,984,408 ✓ pass" in said["accuracy"]
    assert "punkt_tab is not installed." in said["accuracy"]
    assert "p99 bound 2,000 ms" in said["latency"]
    assert "Between phases 22.6 s" in said["phases"]
    assert "Not in the result: stop of the system, tracking." in said["phases"]
    assert "1,310 sequences fit in 56.2 GiB" in said["plan"]
    assert "benchmark: llama3_1-8b" in said["configuration"]
    assert "(13,368 in all)" in said["configuration"]
    assert "node-17" in said["environment"]
    assert "performance/queries.parquet 294.2 KiB" in said["artifacts"]


@pytest.mark.parametrize(
    ("status", "verdict", "label"),
    [
        ("finished", {"valid": True, "reasons": []}, "✓ VALID"),
        ("finished", {"valid": False, "reasons": ["Too slow."]}, "✗ INVALID"),
        ("finished", {}, "! NOT JUDGED"),
        ("finished", {"valid": "true", "reasons": []}, "✗ INVALID"),
        ("failed", {"valid": True, "reasons": []}, "! NOT JUDGED"),
        ("interrupted", {"valid": False, "reasons": []}, "! NOT JUDGED"),
        (None, None, "! NOT JUDGED"),
    ],
)
def test_verdict(run_folder: RunFolder, result: dict[str, Any], status: Any, verdict: Any, label: str) -> None:
    result["run"]["status"], result["verdict"] = status, verdict
    folder = run_folder(result, queries=None)
    write_report(folder, result)
    assert Page(folder / "report.html").sections["verdict"].startswith(label)
    assert f"## {label}\n" in (folder / "report.md").read_text()


def test_nothing_from_outside_becomes_markup(run_folder: RunFolder, result: dict[str, Any]) -> None:
    result = hostile(result)
    folder = run_folder(result, queries=20)
    (folder / "performance" / "<img src=x>").touch()
    write_report(folder, result)
    page = Page(folder / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "link", "a"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script><svg onload=alert(2)>\"'|`](javascript:x) {{ 7 * 7 }}") > 40
    assert "\x1b" not in page.source
    assert "\x00" not in page.source
    tokens = list(
        walk(MarkdownIt("commonmark", {"html": True}).enable("table").parse((folder / "report.md").read_text()))
    )
    assert not [t for t in tokens if t.type in ("html_inline", "html_block", "link_open")]
    assert {t.attrs["src"] for t in tokens if t.type == "image"} == {f"plots/{name}.png" for name in CHARTS}
    assert sum(t.content.count("<script>alert(1)</script>") for t in tokens if t.type in ("text", "fence")) > 40


def walk(tokens: list[Any]) -> Any:
    for token in tokens:
        yield token
        yield from walk(token.children or [])


def test_markdown_is_what_it_says(reported: Path) -> None:
    text = (reported / "report.md").read_text()
    tokens = list(walk(MarkdownIt("commonmark").enable("table").parse(text)))
    images = [t.attrs["src"] for t in tokens if t.type == "image"]
    assert len(images) == len(CHARTS)
    assert all((reported / src).is_file() for src in images)
    cells = [t.content for t in tokens if t.type == "inline"]
    for said in ("1,621 ms", "≤ 2,000 ms", "✗ fail", "21.37 samples/s", "12.90 samples/s", "≥ 35.43507", "node-17"):
        assert said in cells
    # A row that fell out of its table would be read as a paragraph, with its bars.
    assert not [c for c in cells if c.startswith("|")]
    assert len([t for t in tokens if t.type == "table_open"]) == text.count("|\n|---")


@pytest.mark.parametrize(
    "line",
    [
        "# a",
        "- a",
        "+ a",
        "1. a",
        "12) a",
        "---",
        "===",
        "> a",
        "* a",
        " a",
        "a | b",
        "[a](b)",
        "<b>",
        "&lt;",
        "`a`",
        "_a_",
        "**a**",
        "![a](b)",
        "~~a~~",
        "a\n\n# b",
        "\\*a*",
        "***",
    ],
)
def test_markdown_shows_any_line_as_it_is(line: str) -> None:
    tokens = list(
        walk(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(escape_markdown(line)))
    )
    assert {t.type for t in tokens} <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    assert "".join(t.content for t in tokens if t.type in ("text", "text_special")) == " ".join(line.split())


def test_page_needs_nothing_but_itself(reported: Path) -> None:
    page = Page(reported / "report.html")
    links = [
        v for _, a in page.tags for k, v in a.items() if k in ("href", "src", "xlink:href", "action", "data", "srcset")
    ]
    assert links
    assert all(link and link.startswith("#") for link in links)
    assert not re.findall(r"https?://|@import|//[a-z]+\.", page.source)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {str(link)[1:] for link in links} | set(re.findall(r"url\(#([^)]+)\)", page.source))
    assert used <= set(ids)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_charts_follow_light_and_dark(reported: Path) -> None:
    page = Page(reported / "report.html")
    charts = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert len(charts) == len(CHARTS)
    for chart in charts:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b(?!-)", chart), "a colour that does not change with the page's"
        assert "<style" not in chart
        assert 'role="img"' in chart
        assert 'aria-label="' in chart
    style = page.source.split("</style>", 1)[0]
    assert "prefers-color-scheme: dark" in style
    for variable in set(re.findall(r"var\((--[a-z]+)\)", page.source)) - {"--tone"}:
        assert f"{variable}:" in style


def test_failed_run_is_drawn_from_what_it_logged(run_folder: RunFolder, result: dict[str, Any]) -> None:
    result["run"] |= {"status": "failed", "error": "the engine died"}
    result["verdict"] = {"valid": False, "reasons": ["The run did not come to its end: the engine died."]}
    result["metrics"], result["artifacts"], result["phases"] = (
        {"ttft_p99_ms": None},
        [],
        {"start_s": 40.0, "load_s": 90.0},
    )
    folder = run_folder(result, queries=None, live=300)
    written = write_report(folder, result)
    assert {path.stem for path in written[2:]} == {"throughput", "in_flight", "phases"}
    said = Page(folder / "report.html").sections
    assert said["verdict"].count("the engine died") == 1
    assert "TTFT p99 not measured ≤ 2,000 ms –" in said["figures"]
    assert said["rates"].count("not measured") == 3
    assert "No accuracy was measured" in said["accuracy"]
    assert "performance/queries.parquet is missing." in said["latency"]
    assert "mean 1,600 tokens/s and 22 queries/s" in said["time"]
    assert "at most 60" in said["time"]
    assert (
        "Not in the result: preparation, warm-up, drain, accuracy test, stop of the system, scoring, tracking."
        in said["phases"]
    )
    assert "live.jsonl" in said["artifacts"]


def test_failed_queries_are_left_out_and_counted(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=300, errors=7)
    write_report(folder, result)
    said = Page(folder / "report.html").sections["latency"]
    assert "7 of 300 queries ended with an error or not at all" in said
    assert "293 queries: p50" in said


def test_all_queries_failed(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=5, errors=5)
    written = write_report(folder, result)
    assert {path.stem for path in written[2:]} == {"phases"}
    assert "5 of 5 queries ended with an error" in Page(folder / "report.html").sections["latency"]


@pytest.mark.parametrize("broken", [b"", b"PAR1 half a file", b"PAR1" + bytes(100) + b"PAR1"])
def test_broken_records(run_folder: RunFolder, result: dict[str, Any], broken: bytes) -> None:
    folder = run_folder(result, queries=None)
    (folder / "performance" / "queries.parquet").write_bytes(broken)
    write_report(folder, result)
    assert "performance/queries.parquet cannot be read" in Page(folder / "report.html").sections["latency"]


@pytest.mark.parametrize("queries", [0, 1, 2])
def test_hardly_any_query(run_folder: RunFolder, result: dict[str, Any], queries: int) -> None:
    folder = run_folder(result, queries=queries)
    write_report(folder, result)
    assert f"{queries:,} queries: p50" in Page(folder / "report.html").text or queries == 0


def parts(value: Any, at: tuple[Any, ...] = ()) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from parts(inner, (*at, key))


@pytest.mark.parametrize("wrong", [None, "text", 3, float("nan"), [], [None], {}, {"a": {"b": []}}, True])
def test_any_part_may_be_missing_or_wrong(result: dict[str, Any], wrong: Any) -> None:
    """Every key of the result in turn holds something that it never should."""
    from mlperf_exp.report import view

    for path in list(parts(result)):
        changed = json.loads(json.dumps(result))
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = wrong
        assert view.build(changed).title
        del owner[path[-1]]
        assert view.build(changed).title


@pytest.mark.parametrize("wrong", [None, "text", [], {"a": 1}])
def test_page_of_a_result_whose_parts_are_all_wrong(tmp_path: Path, result: dict[str, Any], wrong: Any) -> None:
    write_report(tmp_path, dict.fromkeys(result, wrong))
    assert Page(tmp_path / "report.html").sections["verdict"].startswith("! NOT JUDGED")


def test_big_run_makes_a_small_page(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=400_000, qps=2000.0)
    before = time.process_time()
    written = write_report(folder, result)
    assert time.process_time() - before < 10  # CPU seconds: about 1.5 where nothing is wrong
    assert (folder / "report.html").stat().st_size < 400_000
    assert sum(path.stat().st_size for path in written) < 1_500_000
    assert "400,000 queries: p50" in Page(folder / "report.html").sections["latency"]


def test_files_are_replaced_as_a_whole(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=50)
    first = write_report(folder, result)
    for path in first:
        os.link(path, path.with_name(path.name + ".old"))  # a reader that has the file open
    old = {path: path.read_bytes() for path in first}
    result["run"]["name"], result["phases"]["load_s"] = "another name", 100.0
    write_report(folder, result)
    for path in first:
        assert path.with_name(path.name + ".old").read_bytes() == old[path]
        assert path.stat().st_ino != path.with_name(path.name + ".old").stat().st_ino
    assert "another name" in (folder / "report.html").read_text()
    assert not [p for p in folder.rglob(".*") if p.is_file()]


def test_plots_of_an_earlier_report_go(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=50)
    write_report(folder, result)
    (folder / "plots" / "mine.png").touch()
    (folder / "performance" / "queries.parquet").unlink()
    write_report(folder, result)
    assert {path.name for path in (folder / "plots").iterdir()} == {"phases.png", "mine.png"}


def test_command_rebuilds(run_folder: RunFolder, result: dict[str, Any]) -> None:
    folder = run_folder(result, queries=50)
    command = [sys.executable, "-m", "mlperf_exp.report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(folder / "report.html")
    assert "INVALID" in Page(folder / "report.html").sections["verdict"]


@pytest.mark.parametrize("content", [None, "", '{"run": {"na', "[1]"])
def test_command_without_a_result(run_folder: RunFolder, content: str | None) -> None:
    folder = run_folder(None, queries=None, live=20)
    (folder / "config.yaml").write_text("model: {name: llama3_tiny}\nscenario: {min_duration_s: 5.0}\n")
    if content is not None:
        (folder / "result.json").write_text(content)
    assert main([str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "The run left no result" in page.sections["verdict"]
    assert "llama3_tiny" in page.sections["head"]
    assert "Completed in bins" in page.sections["time"]


def test_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert main([str(folder)]) == 2
        said = capsys.readouterr().err
        assert said == f"RUN_DIR: {folder} is not the folder of a run. Name one that holds a result.json.\n"
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(
    run_folder: RunFolder, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(result, queries=None)
    (folder / "plots").write_text("a file where the folder should be")
    assert main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith("RUN_DIR: the report cannot be written: ")


def test_importing_is_light() -> None:
    heavy = "{'matplotlib', 'pyarrow', 'pandas', 'jinja2', 'torch', 'mlflow'}"
    code = f"import sys, mlperf_exp.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to lay the page out with")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("nasty", [False, True])
def test_no_page_scrolls_sideways(
    run_folder: RunFolder, result: dict[str, Any], tmp_path: Path, width: int, nasty: bool
) -> None:
    if nasty:
        result["run"] |= {"name": "n" * 150, "error": "e" * 500}
        result["plan"]["derived"] = [{"key": "k" * 120, "value": "v" * 300, "why": "w" * 900}]
        result["artifacts"][0]["path"] = "p" * 400
    folder = run_folder(result)
    write_report(folder, result)
    page = (folder / "report.html").read_text().replace("<details", "<details open")
    # A frame, because a browser's own window cannot be as narrow as a phone's.
    (tmp_path / "frame.html").write_text(
        f'<body><iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}"></iframe><script>'
        "onload = () => { const inner = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${inner.clientWidth} ${inner.scrollWidth} ${inner.scrollHeight}` }</script>"
    )
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    visible, wide, high = map(int, found.groups())
    assert width - 20 <= visible <= width
    assert wide <= visible
    assert high > 2000
