"""What a run's folder looks like to a reader: a page, a Markdown report and plots, and a table for the terminal.

``write_report`` makes them from the run folder and its result alone; ``python -m mlperf_exp.report RUN_DIR`` makes
them again.

    text.py       numbers, durations and sizes as a reader wants them
    view.py       result.json -> what is shown, with a sentence for all that is missing
    series.py     queries.parquet and live.jsonl -> a few hundred points for the charts
    charts.py     the only import of matplotlib: points -> inline SVG and PNG
    section.py    what a section of the page is made of
    sections.py   the sections that other modules add, in their order
    render.py     templates whose values are escaped, for HTML and for Markdown
    run_page.py   writes report.html, report.md and plots/
    terminal.py   the table at the end of a run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_report(run_dir: Path, result: dict[str, Any]) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``plots/*.png`` into ``run_dir``; returns the files' paths.

    ``result`` is what ``result.json`` holds; any part of it, and of the folder, may be missing: the page then says so.

    Raises:
        OSError: the folder cannot be written to.
    """
    from mlperf_exp.report.run_page import write_report as write  # matplotlib and pyarrow stay out of light imports

    return write(run_dir, result)


__all__ = ["write_report"]
