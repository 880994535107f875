"""What telemetry adds to a run's measurement, once its system is stopped."""

from __future__ import annotations

import logging
from dataclasses import replace
from urllib.parse import urlsplit

from mlperf_exp.config import Device, OpenaiBackend, SimulatedBackend
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.telemetry import FILE, energy
from mlperf_exp.telemetry.sampler import Sampler

log = logging.getLogger(__name__)

_THIS_HOST = {"localhost", "127.0.0.1", "::1"}


def gpus(plan: Plan) -> int:
    """How many of this host's GPUs the run uses."""
    hw = plan.config.hw
    return hw.gpus_per_node if hw.device is Device.cuda else 0


def add(plan: Plan, measurement: Measurement, sampler: Sampler) -> Measurement:
    """``measurement`` with the figures of its performance test's window; the sampler has ended by now."""
    if not plan.config.telemetry.enabled:
        return measurement
    window = next((test.window_ns for test in measurement.tests if test.mode == "performance"), measurement.window_ns)
    try:
        header, samples = energy.read(plan.run_dir / FILE)
        summary = energy.summarize(header, samples, window, measurement.metrics, not_the_system(plan))
    except Exception as error:  # a garbled file must not cost a run its figures
        log.exception("telemetry broke")
        summary = energy.Summary({"valid": False, "reasons": [f"The samples could not be read: {error}"]})
    record = summary.record
    if sampler.problem is not None:
        record["reasons"] = [*record["reasons"], f"Telemetry: {sampler.problem}."]
    return replace(
        measurement,
        metrics=measurement.metrics | summary.metrics,
        telemetry=record,
        warnings=(*measurement.warnings, *summary.warnings),
    )


def not_the_system(plan: Plan) -> str | None:
    """Why the energy of this host says nothing of the system that was measured; None where it does."""
    backend = plan.config.backend
    if isinstance(backend, SimulatedBackend):
        return "the system is simulated"
    if isinstance(backend, OpenaiBackend) and not all(urlsplit(url).hostname in _THIS_HOST for url in backend.urls):
        return "the servers run on other hosts, and this one is their client"
    if plan.config.hw.nodes > 1:
        return f"the system runs on {plan.config.hw.nodes} nodes, and one of them is sampled"
    return None
