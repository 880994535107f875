"""What a terminal shows at the end of a run: the verdict with its reasons, the figures, where the report is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlperf_exp.report import view
from mlperf_exp.report.insight import sentences
from mlperf_exp.report.text import MISSING, plain

_TONES = {"good": "green", "bad": "red", "neutral": "yellow"}
_MARKS = {view.Mark.passed: "green", view.Mark.failed: "red", view.Mark.none: "dim"}
_REASONS = 8
_INSIGHTS = 2


def summary_table(result: Mapping[str, Any], run_dir: Path | None = None) -> RenderableType:
    """The end of a run for ``rich``: at most a screenful; ``run_dir`` names the folder whose report is pointed at.

    Nothing of ``result`` is read as rich's markup, and terminal escapes in it are taken out.
    """
    shown = view.build(result)
    judgement, tone = shown.judgement, _TONES[shown.judgement.tone]
    head = Text.assemble((f"{judgement.glyph} {judgement.label}", f"bold {tone}"), "  ", (shown.title, "bold"))
    parts: list[RenderableType] = [head, Text(judgement.summary, style="dim")]
    if judgement.short:
        parts.append(Text(judgement.short))
    parts += [_bullet(reason) for reason in judgement.reasons[:_REASONS]]
    if len(judgement.reasons) > _REASONS:
        parts.append(_bullet(f"and {len(judgement.reasons) - _REASONS} more reasons, in the report"))
    parts += [Text(), _figures(shown), Text()]
    of = shown.honest.of.rstrip(".").removeprefix("Over the ")
    parts.append(_pair("MLPerf's figure", shown.honest.mlperf, of[0].lower() + of[1:]))
    parts.append(_pair("Whole wall time", shown.honest.wall, shown.honest.share))
    parts += [_pair("One epoch" if shown.trains else "Full data set", shown.honest.projection)]
    parts += [_pair(name, value) for name, value in _places(result, run_dir)]
    parts += [_pair("Insight", sentence) for sentence in sentences(result)[:_INSIGHTS]]
    warnings = view.part(result, "verdict").get("warnings") or []
    parts += [_pair("Warning", plain(warning)) for warning in warnings[:_REASONS]]
    return Group(*parts)


def _places(result: Mapping[str, Any], run_dir: Path | None) -> Iterator[tuple[str, str]]:
    """LoadGen's own word, and where the rest is to be found."""
    word = view.part(result, "tests", "performance", "loadgen").get("result_validity")
    if word:
        yield "LoadGen says", f"{plain(word)} (of the load as it was set; MLPerf asks for more, see above)"
    if run_dir is not None:
        yield "Report", str(run_dir / "report.html")
    run_id = view.part(result, "run").get("mlflow_run_id")
    if run_id:
        tracking = view.part(result, "plan", "config", "tracking")
        yield "MLflow", f"run {plain(run_id)} in {plain(tracking.get('uri'))}; to see it: make ui"


def _figures(shown: view.View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Figure")
    table.add_column("Measured", justify="right")
    table.add_column("Bound or target")
    table.add_column("Kept")
    for row in (*shown.key_figures, *shown.accuracy.rows):
        table.add_row(Text(row.name), Text(row.value), Text(row.bound), Text(row.mark.value, style=_MARKS[row.mark]))
    if not shown.accuracy.rows:
        table.add_row("Accuracy", MISSING, "", view.Mark.none.value)
    return table


def _bullet(sentence: str) -> RenderableType:
    """A sentence whose further lines stand under its first word."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("•"), Text(sentence))
    return grid


def _pair(name: str, value: str, more: str = "") -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=15)
    grid.add_column(overflow="fold")
    grid.add_row(Text(name, style="dim"), Text(f"{value} ({more})" if more else value))
    return grid
