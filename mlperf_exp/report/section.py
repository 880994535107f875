"""A section of a run's page: what it shows as plain values, the same in HTML and in Markdown.

To add one, write a module with a function ``(result, run_dir) -> Section | None`` and name it in ``sections.py``. It is
given what ``result.json`` holds and the run's folder, and need not escape anything: the templates do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.report.charts import Chart


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under named columns; the columns whose numbers are in ``right`` (from 0) are figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()
    title: str = ""  # shown as a line that unfolds the table, where it is long and not for everybody


@dataclass(frozen=True, slots=True)
class Section:
    """One section, shown in the order of its fields. ``name`` is its anchor on the page."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()  # what is missing, where figures come from


# What ``result.json`` holds, and the run's folder -> the section, None where there is nothing to say.
Build = Callable[[Mapping[str, Any], Path], Section | None]
