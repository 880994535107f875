"""Whether LoadGen's log is of this round and of this load: what LoadGen itself calls VALID in any case.

LoadGen judges the load that it was given. That the load was MLPerf's is for others to see: seeds and version of the
round, equal issue and token latencies for language models, no compliance test's settings, a whole and unchanged log.
Source of the rules: mlcommons/inference_policies, and tools/submission of mlcommons/inference (v6.1).
"""

from __future__ import annotations

from collections.abc import Iterator

from mlperf_exp.benchmarks import BENCHMARKS, LOADGEN, SEEDS
from mlperf_exp.config import Decoder, Scenario
from mlperf_exp.messages import Measurement, Plan, Test

_MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
_NEEDED = {  # the last of each stands at its log's end; LoadGen counts no errors in accuracy mode
    "performance": ("loadgen_version", "effective_scenario", "generated_query_count", "result_validity", "num_errors"),
    "accuracy": ("loadgen_version", "effective_scenario", "effective_accuracy_sample_count", "power_end"),
}
_AUDIT = ("performance_issue_unique", "performance_issue_same", "server_coalesce_queries")
_AGAIN = "run it again"


def reasons(plan: Plan, measurement: Measurement) -> Iterator[str]:
    """One sentence for each thing in the tests' logs that MLPerf's rules do not allow."""
    for test in measurement.tests:
        if not test.loadgen:
            continue  # it did not come to its end, which the judge says by itself
        missing = [key for key in _NEEDED.get(test.mode, ()) if key not in test.loadgen]
        if missing:
            yield f"LoadGen's {test.mode} log is cut short, {missing[0]} is not in it: {_AGAIN}."
            continue
        yield from _round(test)
        yield from _load(plan, test)
        if test.mode == "performance":
            yield from _unchanged(plan, measurement, test)


def _round(test: Test) -> Iterator[str]:
    version = str(test.loadgen["loadgen_version"]).split()[0]
    if version != LOADGEN:
        yield f"The {test.mode} log is LoadGen {version}'s, this round's is {LOADGEN}: install that, and {_AGAIN}."
    for name, seed in SEEDS.items():
        logged = test.loadgen.get(f"effective_{name}")
        if logged != seed:
            yield f"The {test.mode} log's {name} is {logged}, this round's is {seed}: {_AGAIN} without other seeds."
            return
    changes = test.loadgen.get("loadgen_git_status_message")
    if changes:
        yield f"LoadGen was built with changes of its own ({str(changes).splitlines()[0]}): install the released one."


def _load(plan: Plan, test: Test) -> Iterator[str]:
    logged, rules, known = test.loadgen, plan.config.scenario, BENCHMARKS.get(plan.config.model.benchmark or "")
    scenario = "Server" if rules.name is Scenario.interactive else rules.name.value
    if logged["effective_scenario"] != scenario:
        yield f"The {test.mode} log is of the scenario {logged['effective_scenario']}, not {scenario}: {_AGAIN}."
    mode = logged.get("effective_test_mode")
    if mode != _MODES.get(test.mode, mode):
        yield f"The {test.mode} log is of the mode {mode}, not {_MODES[test.mode]}: {_AGAIN}."
    audit = [name for name in _AUDIT if logged.get(f"requested_{name}") or logged.get(f"effective_{name}")]
    if audit:
        yield f"The {test.mode} test ran with {audit[0]}, which only compliance tests may: leave out audit.config."
    if known and issubclass(known.kind, Decoder):
        if not logged.get("effective_sample_concatenate_permutation"):
            yield f"Equal issue (sample_concatenate_permutation) was off in the {test.mode} test: {_AGAIN}."
        if not logged.get("requested_use_token_latencies"):
            yield f"Token latencies (use_token_latencies) were off in the {test.mode} test: {_AGAIN}."


def _unchanged(plan: Plan, measurement: Measurement, test: Test) -> Iterator[str]:
    """The log against the program's own records: edited figures do not fit."""
    logged, metrics = test.loadgen, measurement.metrics
    if logged["result_validity"] == "VALID" and logged.get("early_stopping_met") is False:
        yield f"LoadGen's log says VALID, and that early stopping was not met: it was changed; {_AGAIN}."
    # LoadGen prepares more queries than it sends where one follows the other, and logs how many it sent.
    streams = logged["effective_scenario"] in ("SingleStream", "MultiStream")
    sent = logged.get("result_query_count", 0) if streams else logged["generated_query_count"]
    samples = sent * logged.get("generated_samples_per_query", 1)
    if samples != test.issued:
        yield f"LoadGen's log has {samples:,} samples, the run's records {test.issued:,}: one was changed; {_AGAIN}."
    duration_ms = logged.get("effective_min_duration_ms")
    if duration_ms != round(plan.config.scenario.min_duration_s * 1000):
        yield f"LoadGen's log has a least duration of {duration_ms} ms, the run was set to another: {_AGAIN}."
    for name in ("ttft", "latency"):
        theirs, own = metrics.get(f"{name}_p99_ms"), metrics.get(f"sent_{name}_p99_ms")
        # LoadGen counts from the schedule, which lies before sending: its figure cannot be the smaller one.
        if theirs is not None and own is not None and theirs < 0.98 * own - 2.0:
            yield (
                f"LoadGen's log has {name} p99 {theirs:,.1f} ms, the run's records of the same queries "
                f"{own:,.1f} ms: one was changed; {_AGAIN}."
            )
