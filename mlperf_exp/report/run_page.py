"""One run's page: ``report.html``, ``report.md`` and ``plots/*.png``, from the run folder alone.

The page is one file that needs no network and no JavaScript. All that comes from outside (names, errors, overrides)
passes through Jinja2's escaping, for HTML and for Markdown alike; only this package's own SVG goes in as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mlperf_exp.files import write_atomic
from mlperf_exp.report import charts, sections, series, text, view
from mlperf_exp.report.render import html_environment, markdown_environment
from mlperf_exp.report.series import Series

_CONFIG_LIMIT = 200_000  # characters of YAML on the page; the whole is in config.yaml
_FILES_LIMIT = 200
_OWN = {"report.html", "report.md"}


def write_report(run_dir: Path, result: dict[str, Any]) -> list[Path]:
    """Write the page, the Markdown report and the plots into ``run_dir``; returns their paths, the page first.

    ``result`` is the content of ``result.json``; see ``mlperf_exp.report.write_report``.

    Raises:
        OSError: the folder cannot be written to.
    """
    shown = view.build(result)
    data = series.read(run_dir)
    rules = view.part(result, "plan", "config", "scenario")
    bounds = {key: text.number(rules.get(f"{key}_ms")) for key in ("ttft", "tpot", "latency")}
    drawn = charts.draw(data, bounds, shown.phases, shown.total_s)
    drawn_by_name = {chart.name: chart for chart in drawn}
    more = list(sections.build(result, run_dir))
    drawn += [chart for section in more for chart in section.charts]
    facts = {
        "view": shown,
        "charts": drawn_by_name,
        "chart_notes": _chart_notes(data),
        "source": data.source,
        "sections": more,
        "config": _config(result),
        "artifacts": shown.artifacts[:_FILES_LIMIT] or _found(run_dir),
        "more_artifacts": max(0, len(shown.artifacts) - _FILES_LIMIT),
        "hashed": bool(shown.artifacts),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    plots = run_dir / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    page, markdown = run_dir / "report.html", run_dir / "report.md"
    for name in _pictures(markdown) - {chart.name for chart in drawn}:
        (plots / f"{name}.png").unlink(missing_ok=True)  # of an earlier report: it would contradict this one
    pictures = []
    for chart in drawn:
        pictures.append(plots / f"{chart.name}.png")
        write_atomic(pictures[-1], chart.png)
    write_atomic(page, html_environment().get_template("run.html.j2").render(facts))
    write_atomic(markdown, markdown_environment().get_template("run.md.j2").render(facts))
    return [page, markdown, *pictures]


def _pictures(markdown: Path) -> set[str]:
    """The stems of the plots that an earlier report shows."""
    try:
        return set(re.findall(r"^!\[.*]\(plots/([\w-]+)\.png\)$", markdown.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, ValueError):
        return set()


def _config(result: Mapping[str, Any]) -> str:
    config = view.part(result, "plan", "config")
    if not config:
        return ""
    dumped = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=100)
    return text.plain(dumped, _CONFIG_LIMIT)


def _plain(value: Any) -> Any:
    """Only what YAML's safe dump knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float) else text.plain(value)


def _chart_notes(data: Series) -> tuple[str, ...]:
    said = " ".join(data.missing)
    if not data.source:
        return (f"There are no latencies and no throughput to draw: {said}",)
    if not data.distributions:
        return (f"There are no latency distributions to draw, for they need a row for each query. {said}".rstrip(),)
    return data.missing


def _found(run_dir: Path) -> tuple[tuple[str, float | None, str], ...]:
    """The folder's files, where the result lists none."""
    found: list[tuple[str, float | None, str]] = []
    for path in sorted(run_dir.rglob("*")):
        relative = path.relative_to(run_dir)
        if relative.parts[0] == "plots" or str(relative) in _OWN or not path.is_file():
            continue
        try:
            found.append((text.plain(relative, 500), float(path.stat().st_size), ""))
        except OSError:  # gone since
            continue
        if len(found) == _FILES_LIMIT:
            break
    return tuple(found)
