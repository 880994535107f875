"""The facts of round v6.1 that a submission is held against; one table a benchmark, to be extended for others.

Source, where nothing else is named: mlcommons/inference, ``tools/submission/submission_checker/constants.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROUND = "v6.1"
SEEDS = {  # of the round; also loadgen/mlperf.conf
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
MIN_DURATION_MS = 600_000
MAX_ACCURACY_LOG_BYTES = 10 * 1024
SHOWN_BYTES = 4096  # of a truncated log, from each end; source: tools/submission/truncate_accuracy_log.py
DIVISIONS = ("closed", "open")
AVAILABILITIES = ("available", "preview", "rdi")
SYSTEM_TYPES = ("datacenter", "edge", "datacenter,edge", "edge,datacenter")
SCENARIOS = ("Offline", "Server", "Interactive", "SingleStream", "MultiStream")


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of ``accuracy.txt``: the expression that finds it, and what the closed division asks for."""

    name: str
    pattern: str
    least: float
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """99th percentile bounds of one scenario, in nanoseconds."""

    ttft_ns: int | None = None
    tpot_ns: int | None = None
    latency_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark of the round, under the checker's name.

    ``required`` and ``one_of`` are scenarios by system type; ``one_of`` asks for at least one of them, where it names
    any. ``token_latencies``: a language model, timed token by token.
    """

    name: str
    samples: int  # of the data set
    performance_samples: int
    offline_samples: int
    metrics: tuple[Metric, ...]
    required: dict[str, tuple[str, ...]]
    one_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    bounds: dict[str, Bounds] = field(default_factory=dict)
    token_latencies: bool = False
    input_data_types: str = "fp32"

    def scenarios(self, system_type: str) -> tuple[str, ...]:
        """Every scenario that the closed division knows for a system type."""
        parts = system_type.split(",")
        return tuple(
            dict.fromkeys(s for part in parts for s in (*self.required.get(part, ()), *self.one_of.get(part, ())))
        )

    def missing(self, system_type: str, present: set[str]) -> list[str]:
        """What the closed division asks for beside the scenarios that are there."""
        parts = [part for part in system_type.split(",") if part in self.required]
        absent = [s for part in parts for s in self.required[part] if s not in present]
        choices = [self.one_of.get(part, ()) for part in parts]
        absent += [" or ".join(choice) for choice in choices if choice and not present & set(choice)]
        return list(dict.fromkeys(absent))


def _rouge(r1: float, r2: float, rl: float, rlsum: float, characters: int) -> tuple[Metric, ...]:
    """99 % of the reference's ROUGE; 90 to 110 % of its length."""
    return (
        Metric("ROUGE1", r"'rouge1':\s+'?([\d.]+)", r1 * 0.99),
        Metric("ROUGE2", r"'rouge2':\s+'?([\d.]+)", r2 * 0.99),
        Metric("ROUGEL", r"'rougeL':\s+'?([\d.]+)", rl * 0.99),
        Metric("ROUGELSUM", r"'rougeLsum':\s+'?([\d.]+)", rlsum * 0.99),
        Metric("GEN_LEN", r"'gen_len':\s([\d.]+)", characters * 0.9, characters * 1.1),
    )


_MS = 1_000_000


def _bert(name: str, share: float) -> Benchmark:
    return Benchmark(
        name,
        samples=10833,
        performance_samples=10833,
        offline_samples=10833,
        metrics=(Metric("F1", r"[\"']f1[\"']:\s*([\d.]+)", 90.874 * share),),
        required={"edge": ("SingleStream", "Offline")},
        tests=("TEST01",),
        bounds={"Server": Bounds(latency_ns=130 * _MS)},  # of loadgen/mlperf.conf; the checker's table has none
        input_data_types="int64",
    )


BENCHMARKS: dict[str, Benchmark] = {
    it.name: it
    for it in (
        Benchmark(
            "llama3.1-8b",
            samples=13368,
            performance_samples=13368,
            offline_samples=13368,
            metrics=_rouge(38.7792, 15.9075, 24.4957, 35.793, 8167644),
            required={"datacenter": ("Offline",)},
            one_of={"datacenter": ("Server", "Interactive")},
            tests=("TEST06",),
            bounds={
                "Server": Bounds(ttft_ns=2000 * _MS, tpot_ns=100 * _MS),
                "Interactive": Bounds(ttft_ns=500 * _MS, tpot_ns=30 * _MS),
            },
            token_latencies=True,
            input_data_types="int32",
        ),
        Benchmark(
            "llama3.1-8b-edge",
            samples=5000,
            performance_samples=5000,
            offline_samples=5000,
            metrics=_rouge(39.06, 16.1147, 24.6375, 36.124, 3051113),
            required={"edge": ("SingleStream", "Offline")},
            token_latencies=True,
            input_data_types="int32",
        ),
        Benchmark(
            "resnet50",
            samples=50000,
            performance_samples=1024,
            offline_samples=24576,
            metrics=(Metric("acc", r"^(?:\{\"accuracy|accuracy)[\": ]*=?\s*([\d.]+)", 76.46 * 0.99),),
            required={"edge": ("SingleStream", "MultiStream", "Offline")},
            tests=("TEST01", "TEST04"),
            bounds={"Server": Bounds(latency_ns=15 * _MS)},
        ),
        _bert("bert-99", 0.99),
        _bert("bert-99.9", 0.999),
    )
}

LOADGEN_NAMES = {  # LoadGen's name of the model -> the checker's benchmark
    "llama3_1-8b": "llama3.1-8b",
    "llama3_1-8b-edge": "llama3.1-8b-edge",
    "resnet50": "resnet50",
    "bert": "bert-99",
}
MODELS = {
    "llama3_8b": "llama3.1-8b",
    "llama3_8b_edge": "llama3.1-8b-edge",
    "resnet50": "resnet50",
    "bert_large": "bert-99",
}
"""Models of this project that are a benchmark's own; others are named in ``model_mapping.json``, in open only."""
MAPPED = {name: "resnet" if name == "resnet50" else name for name in BENCHMARKS}
"""Benchmark -> its name in ``model_mapping.json``: the checker knows ``resnet50`` as the name of a folder alone."""


def checked_as(loadgen_name: str, minimum: Mapping[str, float]) -> str:
    """The checker's benchmark of a run, by its accuracy targets: BERT is ``bert-99.9`` where it aims at 99.9 %.

    Raises:
        KeyError: LoadGen's name is no benchmark's.
    """
    high = BENCHMARKS["bert-99.9"].metrics[0].least
    aims_high = loadgen_name == "bert" and minimum.get("f1", 0.0) >= round(high, 6)
    return "bert-99.9" if aims_high else LOADGEN_NAMES[loadgen_name]


def result_folder(model: str, benchmark: str) -> str:
    """The name of a model's results: the benchmark's own, or the model's where it is no benchmark's."""
    return benchmark if model in MODELS else model


MEASUREMENTS = (
    "input_data_types", "retraining", "starting_weights_filename", "weight_data_types", "weight_transformations",
)  # fmt: skip

FIELDS: dict[str, bool] = {  # of systems/SYSTEM.json -> whether it must say something
    "division": True,
    "submitter": True,
    "status": True,
    "system_name": True,
    "system_type": True,
    "system_type_detail": False,
    "number_of_nodes": True,
    "host_processor_model_name": True,
    "host_processors_per_node": True,
    "host_processor_core_count": True,
    "host_processor_frequency": False,
    "host_processor_caches": False,
    "host_processor_interconnect": False,
    "host_memory_capacity": True,
    "host_memory_configuration": True,
    "host_storage_capacity": True,
    "host_storage_type": True,
    "host_networking": True,
    "host_networking_topology": True,
    "host_network_card_count": True,
    "accelerators_per_node": True,
    "accelerator_model_name": True,
    "accelerator_memory_capacity": True,
    "accelerator_memory_configuration": True,
    "accelerator_host_interconnect": True,
    "accelerator_interconnect": True,
    "accelerator_interconnect_topology": False,
    "accelerator_frequency": False,
    "accelerator_on-chip_memories": False,
    "cooling": True,
    "framework": True,
    "operating_system": True,
    "other_software_stack": True,
    "hw_notes": False,
    "sw_notes": False,
}
