from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlperf_exp.report.terminal import summary_table
from mlperf_exp.report.text import duration, figure, number, plain, size


def shown(result: dict[str, Any], run_dir: Path | None = None, width: int = 100, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(summary_table(result, run_dir))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def test_summary_says_what_counts(result: dict[str, Any]) -> None:
    text = shown(result, Path("outputs/one"))
    assert text.startswith("✗ INVALID  llama3_8b h100 server\n")
    for said in (
        "• TPOT p99 107 ms is over 100 ms: lower scenario.target_qps (now 22).",
        "Short run: set to 3 min of load, MLPerf asks for 10 min",
        "MLPerf's figure  21.37 samples/s (performance test alone)",
        "Whole wall time  12.90 samples/s (60 % of MLPerf's figure)",
        "17 min 16 s",
        "outputs/one/report.html",
    ):
        assert said in text
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "TPOT p99 107.3 ms ≤ 100 ms ✗ fail" in rows
    assert "ROUGE-1 38.7792 ≥ 38.39141 ✓ pass" in rows


def test_summary_of_nothing() -> None:
    text = shown({})
    assert text.startswith("! NOT JUDGED")
    assert "Accuracy" in text


def test_summary_shows_no_one_elses_markup_or_escapes(result: dict[str, Any]) -> None:
    result["run"]["name"] = "[red]x[/red] \x1b[2J\x1b]0;title\x07"
    result["verdict"]["reasons"] = ["[/bold] \x9b31m [link=http://a]b[/link]"] * 30
    text = shown(result)
    assert "[red]x[/red]" in text
    assert "[/bold]  [link=http://a]b[/link]" in text.replace("31m", "")
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "and 22 more reasons, in the report" in text
    assert "\x1b[2J" not in shown(result, colour=True)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_summary_keeps_to_its_width(result: dict[str, Any], width: int) -> None:
    assert max(len(line) for line in shown(result, Path("a" * 120), width).splitlines()) <= width


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.4215, "0.421 s"), (9.876, "9.88 s"), (59.96, "60.0 s"), (61, "1 min 01 s"), (600, "10 min"),
     (3599.7, "1 h 00 min"), (5025, "1 h 24 min"), (360000, "100 h 00 min"), (None, "not measured")],
)  # fmt: skip
def test_duration(seconds: Any, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 ms"), (1234.56, "1,235 ms"), (123.456, "123.5 ms"), (12.3456, "12.35 ms"), (0.0123456, "0.0123 ms"),
     (float("nan"), "not measured"), ("7", "not measured"), (True, "not measured"), (None, "not measured")],
)  # fmt: skip
def test_figure(value: Any, said: str) -> None:
    assert figure(value, "ms") == said


def test_sizes_and_plain_text() -> None:
    assert [size(n) for n in (0, 1023, 1024, 5_000_000, 3 << 30, 5 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "4.8 MiB", "3.0 GiB", "5.0 TiB",
    ]  # fmt: skip
    assert size(None) == "size not known"
    assert plain("a\x00b\x1b[31mc\u202ed\ud800\n\te") == "abcd?\n\te"
    assert plain("x" * 5000, 10) == "x" * 10 + " … (4,990 more characters)"
    assert number(10**400) is None
