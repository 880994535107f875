"""Runs -> everything that the comparison's page shows, as text and drawings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlperf_exp.compare import baseline, differences
from mlperf_exp.compare.curves import Curve, Knee, Scaling, knee, load_curves, scaling
from mlperf_exp.compare.drawings import Drawing, Picture, bounds
from mlperf_exp.compare.find import Found
from mlperf_exp.compare.findings import findings
from mlperf_exp.compare.groups import Group, group, varying
from mlperf_exp.compare.metrics import BY_NAME, METRICS
from mlperf_exp.compare.searches import sentences
from mlperf_exp.report.expected import rows as expected_rows
from mlperf_exp.report.section import Table
from mlperf_exp.report.text import figure
from mlperf_exp.report.view import part


@dataclass(frozen=True, slots=True)
class Row:
    """A run in the table: ``cells`` are (shown, what to sort by)."""

    index: int
    run: str
    href: str | None
    verdict: str
    tone: str
    why: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class View:
    """The whole page."""

    title: str
    facts: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, bool], ...]  # name, whether it is a figure
    rows: tuple[Row, ...]
    pareto: tuple[Picture, ...] = ()
    load: tuple[Picture, ...] = ()
    knees: tuple[str, ...] = ()
    bars: tuple[Picture, ...] = ()
    energy: tuple[Picture, ...] = ()
    no_energy: str = ""
    phases: tuple[Picture, ...] = ()
    scaling: tuple[Picture, ...] = ()
    scaling_table: Table | None = None
    expected: Table | None = None
    against: Table | None = None
    statistics: str = ""
    regressions: tuple[str, ...] = ()
    differs: Table | None = None
    embedded: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def build(found: Found, out: Path, groups: Sequence[Group] | None = None) -> View:
    """The page of these runs; links count from ``out``, where it will lie."""
    runs = found.runs
    groups = group(runs) if groups is None else groups
    label = {id(run): one.label for one in groups for run in one.runs}
    place = {id(run): i for i, run in enumerate(runs)}
    labels = [label[id(run)] for run in runs]
    measured = [one for one in groups if any(run.measured for run in one.runs)]
    draw = Drawing(place)
    keys, columns = varying(runs), [m for m in METRICS if any(m.name in run.metrics for run in runs)]
    against = baseline.compare(groups)
    curves = load_curves(measured)
    knees = [(curve, knee(curve, bounds(curve))) for curve in curves]
    rate = _rate(measured)
    sizes = scaling(measured, rate)
    return View(
        title=f"{len(runs)} run{'s' * (len(runs) != 1)} compared",
        facts=_facts(found, groups),
        columns=(("Run", False), ("Verdict", False), ("Configuration", False),
                 *((f"{m.label} ({m.unit})" if m.unit else m.label, True) for m in columns)),
        rows=tuple(_row(i, run, text, columns, out) for i, (run, text) in enumerate(zip(runs, labels, strict=True))),
        pareto=tuple(draw.pareto(measured, rate)),
        load=tuple(draw.load(knees)),
        knees=tuple(_knee_words(curve, found_knee) for curve, found_knee in knees),
        bars=tuple(draw.bars(measured, rate)),
        energy=tuple(draw.energy(measured)),
        no_energy="" if any("joules_per_token" in one.means or "joules_per_sample" in one.means for one in measured)
        else _no_energy(measured),
        phases=tuple(draw.phases(groups)),
        scaling=tuple(draw.scaling(sizes, rate)),
        scaling_table=_scaling_table(sizes, rate),
        expected=_expected(groups),
        against=_against(against),
        statistics="" if against is None else against.statistics + _other_loads(against.other_loads),
        regressions=tuple(
            f"{c.label}: {c.metric} {c.before} → {c.after} ({c.why})" for c in (against.regressions if against else ())
        ),
        differs=_differs(runs, keys),
        embedded=differences.embedded(runs, labels),
        findings=(*findings(measured, knees, sizes, rate, against), *sentences(runs)),
        left_out=found.left_out,
    )  # fmt: skip


def _rate(groups: Sequence[Group]) -> str:
    """The throughput that most of the runs have."""
    names = ("tokens_per_second", "samples_per_second", "train_samples_per_second")
    return max(names, key=lambda name: sum(name in one.means for one in groups))


def _facts(found: Found, groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    runs = found.runs
    facts = [("Configurations", f"{len(groups):,}"), ("Runs", f"{len(runs):,}")]
    if found.left_out:
        facts.append(("Left out", f"{len(found.left_out):,}"))
    for name, key in (("Model", "model.name"), ("Hardware", "hw.name"), ("Scenario", "scenario.name")):
        values = sorted({run.facts[key] for run in runs if key in run.facts})
        if values:
            facts.append((name, ", ".join(values[:6]) + (", …" if len(values) > 6 else "")))
    count = sum(run.valid for run in runs)
    facts.append(("Valid by MLPerf's rules", f"{count:,} of {len(runs):,}"))
    return tuple(facts)


def _row(index: int, run: Any, label: str, columns: Sequence[Any], out: Path) -> Row:
    verdict, tone = ("✓ VALID", "passed") if run.valid else ("✗ INVALID", "failed")
    if run.status != "finished":
        verdict, tone = f"! {run.status}", "failed"
    href = None
    if run.folder is not None and (run.folder / "report.html").is_file():
        href = quote(os.path.relpath(run.folder / "report.html", out))
    cells = [(label, label)]
    for metric in columns:
        value = run.metrics.get(metric.name)
        cells.append(("–" if value is None else figure(value), "" if value is None else repr(value)))
    return Row(index, run.id, href, verdict, tone, " ".join(run.reasons[:3]), tuple(cells))


def _knee_words(curve: Curve, found: Knee | None) -> str:
    if found is None:
        return f"{curve.name}: no load that was measured keeps the bounds, or the curve has no bend."
    beyond = "no higher load was measured" if found.next_load is None else f"the next, {found.next_load:g}, does not"
    if "chord" in found.rule:
        beyond = "it bends there"
    return f"{curve.name}: knee at {found.load:g} queries/s ({found.rule}; {beyond})."


def _no_energy(groups: Sequence[Group]) -> str:
    reasons: dict[str, None] = {}
    for one in groups:
        record = part(one.first.result, "telemetry")
        for what, why in part(record, "unreadable").items():
            reasons[f"{what}: {why}"] = None
        if record.get("energy_left_out"):
            reasons[str(record["energy_left_out"])] = None
        for why in record.get("reasons") or ():
            reasons[str(why)] = None
    said = "; ".join(list(reasons)[:4])
    return f"No energy per token or sample was measured{f' ({said})' if said else ''}."


def _other_loads(count: int) -> str:
    if not count:
        return ""
    return f" {count} configuration{'s' * (count != 1)} of another model, data set or load are not held against it."


def _scaling_table(sizes: Sequence[Scaling], rate: str) -> Table | None:
    extras = [name for name in ("tail_s", "router_overhead_p99_ms", "client_thread_cores") if _anywhere(sizes, name)]
    rows = [
        (
            one.name,
            str(count),
            figure(value, BY_NAME[rate].unit),
            f"{100 * share:.0f} %",
            *(figure(group.value(name), _EXTRAS[name][1]) for name in extras),
        )
        for one in sizes
        for count, value, share, group in zip(one.counts, one.rates, one.efficiency, one.groups, strict=True)
    ]
    columns = ("Configuration", "Accelerators", BY_NAME[rate].label, "Efficiency", *(_EXTRAS[n][0] for n in extras))
    return Table(columns, tuple(rows), right=tuple(range(1, len(columns)))) if rows else None


_EXTRAS = {  # of runs over several replicas: label, unit
    "tail_s": ("Tail", "s"),
    "router_overhead_p99_ms": ("Router p99", "ms"),
    "client_thread_cores": ("Busiest thread of LoadGen's process", "cores"),
}


def _anywhere(sizes: Sequence[Scaling], name: str) -> bool:
    """Whether a run over several replicas has this figure."""
    return any(group.value(name) is not None and group.value("replicas") for one in sizes for group in one.groups)


def _expected(groups: Sequence[Group]) -> Table | None:
    found = [(one.label, *row) for one in groups for row in expected_rows(one.first.result)]
    columns = ("Configuration", "Figure", "Expected", "Measured", "Bound of the hardware", "What it means", "Source")
    return Table(columns, tuple(found)) if found else None


def _against(against: baseline.Comparison | None) -> Table | None:
    if against is None:
        return None
    rows = tuple((c.label, c.metric, c.before, c.after, c.why, c.verdict) for c in against.changes)
    return Table(("Configuration", "Figure", "Baseline", "Now", "Change", "Judgement"), rows, right=(2, 3, 4))


def _differs(runs: Sequence[Any], keys: Sequence[str]) -> Table | None:
    rows = []
    for key, values, _ in differences.table(runs):
        shown = ", ".join(values[:8]) + (f", … ({len(values)} values)" if len(values) > 8 else "")
        rows.append((key, shown))
    return Table(("What", "Values"), tuple(rows)) if rows and keys is not None else None
