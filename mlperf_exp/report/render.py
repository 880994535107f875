"""The pages' templates: every value that comes from outside is escaped, for HTML and for Markdown alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlperf_exp.report import text

_TEMPLATES = Path(__file__).parent / "templates"
_BLOCK = re.compile(r"^(?:(\d+)([.)])(?=\s|$)|([-+=])(?=\s|[-+=]|$))")  # what makes a list or a rule of a line
_MARKDOWN = re.compile(r"([\\`*\[\]|#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def html_environment(*folders: Path) -> jinja2.Environment:
    """Escapes every value for HTML; looks for templates in ``folders`` first, then among the report's."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=text.size, duration=text.duration, svg=Markup)
    environment.globals["style"] = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment


def markdown_environment(*folders: Path) -> jinja2.Environment:
    """Escapes every value by Markdown's rules, as autoescape does by HTML's; ``Markup`` goes in as it is."""
    environment = jinja2.Environment(  # noqa: S701 - finalize escapes
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
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
