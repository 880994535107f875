"""Writes ``compare.html``, ``compare.md`` and ``compare.csv``; the page is one file that needs no network.

All that comes from outside passes through Jinja2's escaping; only this package's own drawings go in as they are. The
one script is named by its hash in the page's policy, so that nothing else can run.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from mlperf_exp.compare.find import Found
from mlperf_exp.compare.groups import Group, varying
from mlperf_exp.compare.metrics import METRICS
from mlperf_exp.compare.view import View, build
from mlperf_exp.files import write_atomic
from mlperf_exp.report.render import html_environment, markdown_environment

_TEMPLATES = Path(__file__).parent / "templates"


def write(found: Found, groups: list[Group], out: Path) -> list[Path]:
    """Write the three files into ``out``; returns their paths, the page first.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    view = build(found, out, groups)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page, markdown, table = out / "compare.html", out / "compare.md", out / "compare.csv"
    write_atomic(page, render(view, written))
    text = markdown_environment(_TEMPLATES).get_template("compare.md.j2").render(view=view, written=written)
    write_atomic(markdown, text)
    write_atomic(table, as_csv(found, groups))
    return [page, markdown, table]


def render(view: View, written: str) -> str:
    """The page."""
    environment = html_environment(_TEMPLATES)
    script = (_TEMPLATES / "compare.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("compare.html.j2").render(
        view=view,
        written=written,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        own_style=Markup((_TEMPLATES / "compare.css").read_text(encoding="utf-8")),
    )


def as_csv(found: Found, groups: list[Group]) -> str:
    """A row a run: where it is, its verdict, what differs, every figure."""
    label = {id(run): one.label for one in groups for run in one.runs}
    keys = varying(found.runs)
    known = [metric.name for metric in METRICS]
    names = sorted(
        {name for run in found.runs for name in run.metrics}, key=lambda n: (known.index(n) if n in known else 99, n)
    )
    phases = sorted({name for run in found.runs for name in run.phases})
    target = io.StringIO()
    writer = csv.writer(target)
    head = ["run", "name", "where", "status", "valid", "reasons", "configuration", "baseline"]
    writer.writerow([*head, *keys, *names, *(f"phase/{name}" for name in phases)])
    for run in found.runs:
        cells = [
            run.id,
            run.name,
            run.where,
            run.status,
            run.valid,
            " ".join(run.reasons),
            label[id(run)],
            run.baseline,
        ]
        writer.writerow(
            [
                *map(_harmless, cells),
                *(_harmless(run.facts.get(key, "")) for key in keys),
                *(run.metrics.get(name, "") for name in names),
                *(run.phases.get(name, "") for name in phases),
            ]
        )
    return target.getvalue()


def _harmless(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
