"""The sentences at the end of a comparison: each a rule, each with the numbers that it is drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlperf_exp.compare.baseline import Comparison
from mlperf_exp.compare.curves import Curve, Knee, Scaling
from mlperf_exp.compare.groups import Group
from mlperf_exp.compare.metrics import BY_NAME
from mlperf_exp.report.text import figure

_POOR_SCALING = 0.9


def findings(
    groups: Sequence[Group],
    knees: Sequence[tuple[Curve, Knee | None]],
    sizes: Sequence[Scaling],
    rate: str,
    against: Comparison | None,
) -> Iterator[str]:
    """What the figures say, most important first."""
    yield from _regressions(against)
    yield from _best(groups, rate)
    yield from _knees(knees)
    yield from _frugal(groups, rate)
    yield from _scaling(sizes)
    yield from _repeats(groups, rate)


def _regressions(against: Comparison | None) -> Iterator[str]:
    if against is None:
        return
    worse = against.regressions
    if worse:
        first = worse[0]
        more = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
        what = f"{first.metric} of {first.label}, {first.before} → {first.after}{more}"
        yield f"Worse than the baseline beyond the noise: {what}."
    elif against.changes:
        yield f"Nothing is worse than the baseline beyond the noise, of {len(against.changes)} figures."


def _best(groups: Sequence[Group], rate: str) -> Iterator[str]:
    """The fastest, and the fastest that counts by MLPerf's rules where that is another one."""
    ranked = sorted((one for one in groups if one.value(rate)), key=lambda one: -(one.value(rate) or 0))
    if not ranked:
        return
    unit = BY_NAME[rate].unit
    valid = [one for one in ranked if all(run.valid for run in one.runs)]
    if len(ranked) > 1:
        best, worst = ranked[0], ranked[-1]
        times = (best.value(rate) or 0) / (worst.value(rate) or 1)
        shown = figure(best.value(rate), unit)
        yield f"Fastest: {best.label} with {shown}, {times:.2f} times the slowest ({worst.label})."
    if valid and valid[0] is not ranked[0]:
        share = (valid[0].value(rate) or 0) / (ranked[0].value(rate) or 1)
        shown = figure(valid[0].value(rate), unit)
        yield f"Fastest valid: {valid[0].label} with {shown}, {100 * share:.0f} % of the fastest."
    elif not valid:
        count = len(ranked)
        yield f"None of the {count} measured configurations is valid by MLPerf's rules; the table says why of each."


def _knees(knees: Sequence[tuple[Curve, Knee | None]]) -> Iterator[str]:
    for curve, found in list(knees)[:4]:
        if found is None:
            continue
        metric = "ttft_p99_ms" if any(curve.ys("ttft_p99_ms")) else "latency_p99_ms"
        values = dict(zip(curve.loads, curve.ys(metric), strict=True))
        at = figure(values[found.load], "ms")
        label = BY_NAME[metric].label
        if found.next_load is None:
            yield (
                f"{curve.name} keeps its bounds up to the highest load measured, {found.load:g} queries/s "
                f"({label} {at}): try more."
            )
        else:
            beyond = figure(values[found.next_load], "ms")
            yield (
                f"{curve.name} has its knee at {found.load:g} queries/s: {label} {at} there and {beyond} at "
                f"{found.next_load:g}; try loads between the two."
            )


def _frugal(groups: Sequence[Group], rate: str) -> Iterator[str]:
    """The least energy, where that is not the fastest."""
    name = "joules_per_token" if rate == "tokens_per_second" else "joules_per_sample"
    with_it = [one for one in groups if one.value(name) and one.value(rate)]
    if len(with_it) < 2:
        return
    least = min(with_it, key=lambda one: one.value(name) or 0)
    fastest = max(with_it, key=lambda one: one.value(rate) or 0)
    unit = BY_NAME[name].unit
    if least is fastest:
        yield f"The fastest also takes the least energy: {figure(least.value(name), unit)} ({least.label})."
    else:
        share = (least.value(rate) or 0) / (fastest.value(rate) or 1)
        yield (
            f"Least energy: {least.label} with {figure(least.value(name), unit)}, against "
            f"{figure(fastest.value(name), unit)} of the fastest, at {100 * share:.0f} % of its rate."
        )


def _scaling(sizes: Sequence[Scaling]) -> Iterator[str]:
    for one in sizes:
        word = "loses" if one.efficiency[-1] < _POOR_SCALING else "keeps its rate for each"
        end = (
            f"{100 * one.efficiency[-1]:.0f} % of perfect scaling from {one.counts[0]} to {one.counts[-1]} accelerators"
        )
        if word == "loses":
            yield f"{one.name} reaches only {end}: look at what they wait for (network, one client, uneven routing)."
        else:
            yield f"{one.name} reaches {end}."
        largest = one.groups[-1]
        busy = largest.value("client_thread_cores")
        if busy and largest.value("replicas"):
            yield (
                f"One thread of LoadGen's process took {busy:.2f} cores at {one.counts[-1]} accelerators: whatever "
                f"they add, {one.name} would stop scaling at about {one.counts[-1] / busy:,.0f}."
            )


def _repeats(groups: Sequence[Group], rate: str) -> Iterator[str]:
    """Differences that single runs cannot carry."""
    once = [one for one in groups if rate in one.means and one.means[rate].count == 1]
    if groups and len(once) == len([one for one in groups if rate in one.means]) and len(once) > 1:
        yield "Every configuration was run once, so small differences may be noise: repeat the best ones."
