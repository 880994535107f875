"""The seam where other modules add sections: shown whole on the page and in Markdown, and never able to break it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from mlperf_exp.report import sections, write_report
from mlperf_exp.report.section import Section, Table

NASTY = "<script>alert(1)</script> | `x` {{ 7 * 7 }}"


def everything(result: Mapping[str, Any], run_dir: Path) -> Section:
    return Section(
        "everything", f"All of it {NASTY}", (f"A paragraph {NASTY}",), (f"A bullet {NASTY}",),
        tables=(Table(("What", "How much"), ((f"cell {NASTY}", "12 J"),), right=(1,)),
                Table(("Key", "Value"), (("a", "b"),), title=f"Long {NASTY}")),
        notes=(f"A note {NASTY}",),
    )  # fmt: skip


def silent(result: Mapping[str, Any], run_dir: Path) -> None:
    return None


def broken(result: Mapping[str, Any], run_dir: Path) -> Section:
    raise KeyError(f"no such thing {NASTY}")


def test_sections_are_shown_escaped_and_a_broken_one_says_so(
    run_folder: Callable[..., Path], result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "SECTIONS", (silent, everything, broken))
    folder = run_folder(result, queries=None)
    (folder / "plots").mkdir()
    (folder / "plots" / "of_an_earlier_report.png").write_bytes(b"old")
    (folder / "report.md").write_text("![Old](plots/of_an_earlier_report.png)\n")
    write_report(folder, result)
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for word in ("A paragraph", "A bullet", "cell", "12 J", "A note", "Long", "no such thing"):
        assert word in page
        assert word in markdown
    assert "<script>" not in page
    assert page.index('id="phases"') < page.index('id="everything"') < page.index('id="plan"')
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    assert "<script>" not in rendered
    assert '<td style="text-align:right">12 J</td>' in rendered
    assert "This part could not be made: KeyError" in page
    assert not (folder / "plots" / "of_an_earlier_report.png").exists()
