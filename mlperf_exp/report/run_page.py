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

import jinja2
import yaml
from markupsafe import Markup

from mlperf_exp.files import write_atomic
from mlperf_exp.report import charts, sections, series, text, view
from mlperf_exp.report.series import Series

_TEMPLATES = Path(__file__).parent / "templates"
_CONFIG_LIMIT = 200_000  # characters of YAML on the page; the whole is in config.yaml
_FILES_LIMIT = 200
_OWN = {"report.html", "report.md"}
_BLOCK = re.compile(r"^(?:(\d+)([.)])(?=\s|$)|([-+=])(?=\s|[-+=]|$))")  # what makes a list or a rule of a line
_MARKDOWN = re.compile(r"([\\`*\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


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
    write_atomic(page, _html().get_template("run.html.j2").render(facts))
    write_atomic(markdown, _markdown().get_template("run.md.j2").render(facts))
    return [page, markdown, *pictures]


def _pictures(markdown: Path) -> set[str]:
    """The stems of the plots that an earlier report shows."""
    try:
        return set(re.findall(r"^!\[.*]\(plots/([\w-]+)\.png\)$", markdown.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, ValueError):
        return set()


def _html() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=text.size, duration=text.duration, svg=Markup)
    environment.globals["style"] = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment


def _markdown() -> jinja2.Environment:
    """Escapes every value by Markdown's rules, as autoescape does by HTML's; ``Markup`` goes in as it is."""
    environment = jinja2.Environment(  # noqa: S701 - finalize escapes
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        finalize=escape_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(size=text.size, duration=text.duration, fenced=_fenced, raw=Markup)
    return environment


def escape_markdown(value: Any) -> str:
    """``value`` on one line, so that no character of it means anything to a Markdown reader, not even in a table."""
    if isinstance(value, Markup):
        return value
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKDOWN.sub(r"\\\1", line)
    return _BLOCK.sub(lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", line)


def _fenced(content: str) -> Markup:
    """A code block whose fence is longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup("{0}yaml\n{1}\n{0}").format(Markup(fence), Markup(content.rstrip("\n")))


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
