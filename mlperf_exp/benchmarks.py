"""What MLPerf Inference v6.1 says of each benchmark, by LoadGen's names; source: the submission checker's constants.

LoadGen takes a name that it does not know without a word, so that only these may be given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlperf_exp.config import Decoder, ExtractiveQa, ImageClassifier, Model, Scenario

MIN_DURATION_S = 600.0  # all scenarios
LOADGEN = "6.0.17"  # the round's
SEEDS = {  # the round's, from the mlperf.conf inside LoadGen
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: the kind of model, its closed scenarios, and 99th percentile bounds by metric and scenario.

    ``bounds_ms`` maps a scenario to ``ttft``, ``tpot`` and ``latency`` bounds; ``offline_samples`` is the least load
    of the offline scenario. ``edge`` benchmarks have no scenario of servers at all.
    """

    kind: type[Model]
    closed: tuple[Scenario, ...]
    offline_samples: int
    bounds_ms: dict[Scenario, dict[str, float]] = field(default_factory=dict)
    edge: bool = False


_LLAMA_BOUNDS = {
    Scenario.server: {"ttft": 2000.0, "tpot": 100.0},
    Scenario.interactive: {"ttft": 500.0, "tpot": 30.0},
}
BENCHMARKS = {
    "llama3_1-8b": Benchmark(
        Decoder, (Scenario.offline, Scenario.server, Scenario.interactive), 13368, bounds_ms=_LLAMA_BOUNDS
    ),
    "llama3_1-8b-edge": Benchmark(Decoder, (Scenario.offline, Scenario.single_stream), 5000, edge=True),
    "resnet50": Benchmark(
        ImageClassifier,
        (Scenario.single_stream, Scenario.multi_stream, Scenario.offline, Scenario.server),
        24576,
        bounds_ms={Scenario.server: {"latency": 15.0}},
    ),
    "bert": Benchmark(
        ExtractiveQa,
        (Scenario.single_stream, Scenario.offline),
        10833,
        bounds_ms={Scenario.server: {"latency": 130.0}},
    ),
}


def bounds_ms(benchmark: str | None, scenario: Scenario) -> dict[str, float]:
    """MLPerf's 99th percentile bounds of a benchmark in a scenario, by metric; empty where it has none."""
    known = BENCHMARKS.get(benchmark or "")
    return known.bounds_ms.get(scenario, {}) if known else {}
