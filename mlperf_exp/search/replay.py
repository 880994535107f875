"""What a short probe says of a full run at its rate, whose queries are known beforehand: LoadGen's schedule is fixed.

A probe's queries are the first ones of that schedule, and stretches of it are far from its mean: the first thousand
gaps of round v6.1 are 4 % too short. Latencies that rise there need not rise for ever. So they are explained by the
schedule itself: by a server that answers one query after the other at a constant rate, chosen by least squares. The
full run's schedule is then replayed on that server, and what the server does not explain is added to its waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlperf_exp.client import Floats

_LATE = 0.01  # of the queries may miss a bound at the 99th percentile
_DEVIATIONS = 2.326  # of the normal distribution, for LoadGen's confidence of 99 %
_START = 0.2  # of a probe's queries are not looked at: batches and caches fill up
_LEAST, _MOST = 0.5, 4.0  # of the offered rate: in between the server's rate is looked for
_COARSE, _FINE = 81, 41


@dataclass(frozen=True, slots=True)
class Projection:
    """What a full run would show: the latency that has to keep the bound, and the rate that the probe's server has."""

    late_ms: float
    capacity_qps: float


def allowed(count: int) -> int:
    """How many of ``count`` queries may miss a bound at the 99th percentile, LoadGen's early stopping included.

    By the normal approximation of its binomial test; it grows from 2 in 1,000 to nearly 1 % of long runs.
    """
    return max(0, int(_LATE * count - _DEVIATIONS * (_LATE * (1 - _LATE) * count) ** 0.5))


def deciding_ms(late_ms: Floats, count: int) -> float:
    """The latency that has to keep the bound if a run of ``count`` queries has these latencies."""
    return float(np.quantile(late_ms, 1 - allowed(count) / count, method="higher"))


def waits_s(arrived_s: Floats, rate: float) -> Floats:
    """How long each query waits for a server that answers one after the other, ``rate`` a second (Lindley)."""
    steps = np.concatenate([[0.0], np.cumsum(1 / rate - np.diff(arrived_s))])
    return np.asarray(steps - np.minimum.accumulate(steps), dtype=np.float64)


def capacity_qps(arrived_s: Floats, late_ms: Floats) -> float:
    """The rate of the server whose waits explain ``late_ms`` best; far above the offered one where nothing waits."""
    begin = int(_START * len(arrived_s))
    kept = np.isfinite(late_ms[begin:])
    offered = (len(arrived_s) - 1) / (arrived_s[-1] - arrived_s[0])

    def unexplained(rates: Floats) -> Floats:
        seen = late_ms[begin:][kept]
        return np.array([np.var(seen - 1e3 * waits_s(arrived_s, rate)[begin:][kept]) for rate in rates])

    rates = np.geomspace(_LEAST * offered, _MOST * offered, _COARSE)
    best = int(np.argmin(unexplained(rates)))
    rates = np.geomspace(rates[max(0, best - 1)], rates[min(_COARSE - 1, best + 1)], _FINE)
    return float(rates[np.argmin(unexplained(rates))])


def projected(arrived_s: Floats, late_ms: Floats, full_s: Floats) -> Projection:
    """A full run whose queries come at ``full_s``, by a probe whose queries came at ``arrived_s``.

    Args:
        arrived_s: when each query of the probe was scheduled, in seconds.
        late_ms: its latencies; not a number where a query has none.
        full_s: when the queries of the full run are scheduled.
    """
    rate = capacity_qps(arrived_s, late_ms)
    begin = int(_START * len(arrived_s))
    rest = (late_ms - 1e3 * waits_s(arrived_s, rate))[begin:]
    late = 1e3 * waits_s(full_s, rate) + np.resize(rest[np.isfinite(rest)], len(full_s))
    return Projection(deciding_ms(late, len(full_s)), rate)


def against(
    label: str, bound_ms: float, arrived_s: Floats, late_ms: Floats, full_s: Floats, grows: bool = True
) -> str | None:
    """Why a full run would miss a bound by what a probe shows, None where it would not; see :func:`projected`.

    ``label`` is the latency's name. Where it ``grows`` with a queue, the full run's schedule is replayed, too.
    """
    seen = late_ms[np.isfinite(late_ms)]
    if not len(seen):
        return f"{label} was not measured"
    p99 = float(np.percentile(seen, 99))
    if p99 > bound_ms:
        return f"{label} p99 {p99:,.0f} ms is over {bound_ms:,.0f} ms"
    if deciding_ms(seen, len(full_s)) > bound_ms:
        share, most = float(np.mean(seen > bound_ms)), allowed(len(full_s)) / len(full_s)
        return f"{label} is over {bound_ms:,.0f} ms for {share:.2%} of the queries, in a full run {most:.2%} may be"
    if not grows:
        return None
    full = projected(arrived_s, late_ms, full_s)
    if full.late_ms <= bound_ms:
        return None
    return (
        f"the queue would grow: by the {full.capacity_qps:,.4g} queries/s that this probe shows, a full run's {label} "
        f"would reach {full.late_ms:,.0f} ms, over {bound_ms:,.0f} ms"
    )
