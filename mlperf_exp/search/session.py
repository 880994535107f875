"""The search on a started system: short probes, then the full run at the rate that they found."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from mlperf_exp.bench import measure
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.progress import Progress
from mlperf_exp.running import Running
from mlperf_exp.search.probe import at_rate, first_rate, judged, probe_plan
from mlperf_exp.search.rates import Probe, found, next_probe, next_run
from mlperf_exp.search.state import State


def search(system: Running, plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """Find the highest valid rate, and measure at it in full; see :func:`mlperf_exp.bench.measure`.

    The measurement's ``search`` holds what ``search.json`` does.

    Raises:
        UserError: the folder holds another plan's search.
    """
    state = State(plan, inputs)
    while (rate := next_probe(state.probes, first_rate(plan))) is not None:
        if any(probe.full for probe in state.probes):
            break
        number = len(state.probes) + 1
        short = probe_plan(plan, rate, number, len(inputs.samples))
        shutil.rmtree(short.run_dir, ignore_errors=True)  # of a probe that was killed
        short.run_dir.mkdir(parents=True)
        measured = measure(system, short, inputs, progress)
        if measured.failure:
            return replace(measured, search=state.as_dict())
        state.add(judged(short, measured, number, False, plan.config.scenario.min_duration_s))
    return _full(system, plan, inputs, progress, state)


def _full(system: Running, plan: Plan, inputs: Inputs, progress: Progress, state: State) -> Measurement:
    """The full run at the rate that was found, stepping down while it is not valid; then accuracy and compliance."""
    measured: Measurement | None = None
    settled = found(state.probes)  # of a run that was killed after it was confirmed: measured once more
    while (rate := settled or next_run(state.probes)) is not None:
        number = len(state.probes) + 1
        full = at_rate(plan, rate)
        shutil.rmtree(plan.run_dir / "performance", ignore_errors=True)
        measured = measure(system, replace(full, modes=("performance",), compliance=()), inputs, progress)
        if measured.failure:
            return replace(measured, search=state.as_dict())
        probe = judged(full, measured, number, True, 0.0)
        if settled is None or not probe.valid:
            state.add(probe)
        settled = None
        if probe.valid:
            break
    if measured is None:
        return Measurement({}, {}, failure=_nothing(state.probes), search=state.as_dict(), warnings=inputs.warnings)
    rate = state.probes[-1].target_qps
    rest = replace(at_rate(plan, rate), modes=tuple(mode for mode in plan.modes if mode != "performance"))
    if rest.modes or rest.compliance:
        others = measure(system, rest, inputs, progress)
        measured = replace(
            others,
            metrics=measured.metrics | others.metrics,
            phases=measured.phases | others.phases,
            tests=(*measured.tests, *others.tests),
        )
    if not measured.failure:
        state.done()
    return replace(measured, search=state.as_dict())


def _nothing(probes: Sequence[Probe]) -> str:
    last = min(probes, key=lambda probe: probe.target_qps)
    return f"the search found no valid rate down to {last.target_qps:.3g} queries/s, where {last.reason}"
