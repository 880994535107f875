"""TEST01 and TEST04 of ResNet and BERT, scored by their own scorers, on the torch backend with the real LoadGen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, inputs, loadgen, networks
from mlperf_exp.bench import bench
from mlperf_exp.compliance import session
from mlperf_exp.config import ExtractiveQa
from mlperf_exp.data.squad_tiny import write_questions
from mlperf_exp.messages import Answers, ComplianceTest, Plan, Query
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress
from mlperf_exp.sut.base import Sink
from mlperf_exp.sut.forward.bert import PackedBert
from mlperf_exp.sut.torch import Torch

SHORT = ["hw=cpu", "compliance=on", "scenario.min_duration_s=1", "backend.threads=1", "progress=false"]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Both kinds of models with random weights, which their scorers take as well as trained ones."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(networks.build("resnet_tiny", 10).state_dict(), tmp_path / "resnet.pth")
    config = make_plan(compose("config", ["model=bert_tiny", "hw=cpu"]), tmp_path).config
    folder = write_questions(tmp_path / "bert")
    torch.save(bert_weights(config.model), folder / "model.bin")
    return {
        "resnet": ["model=resnet_tiny", "model.path=resnet.pth", *SHORT],
        "bert": ["model=bert_tiny", "model.path=bert", *SHORT],
    }


def bert_weights(shape: ExtractiveQa) -> dict[str, Any]:
    """A state dict of the model's names and shapes: whatever the network asks for."""
    made: dict[str, Any] = {}
    hidden, wide = shape.hidden_size, shape.intermediate_size
    at = "bert.embeddings."
    sizes = {f"{at}word_embeddings.weight": (shape.vocab_size, hidden),
             f"{at}position_embeddings.weight": (shape.max_positions, hidden),
             f"{at}token_type_embeddings.weight": (2, hidden)}  # fmt: skip
    norms, linears = [f"{at}LayerNorm"], {"qa_outputs": (2, hidden)}
    for n in range(shape.layers):
        at = f"bert.encoder.layer.{n}."
        linears |= {f"{at}attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        linears |= {f"{at}attention.output.dense": (hidden, hidden), f"{at}intermediate.dense": (wide, hidden),
                    f"{at}output.dense": (hidden, wide)}  # fmt: skip
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    sizes |= {f"{name}.weight": size for name, size in linears.items()}
    made |= {name: torch.randn(size) * 0.2 for name, size in sizes.items()}
    made |= {f"{name}.bias": torch.zeros(size[0]) for name, size in linears.items()}
    for name in norms:
        made |= {f"{name}.weight": torch.ones(hidden), f"{name}.bias": torch.zeros(hidden)}
    PackedBert(shape, made, torch.float32, "cpu")
    return made


def run(folder: Path, *overrides: str) -> dict[str, ComplianceTest]:
    """A whole measurement with its compliance tests."""
    folder.mkdir(parents=True, exist_ok=True)
    it = make_plan(compose("config", list(overrides)), folder)
    with Progress(it) as progress:
        measurement = bench(it, inputs.load(it), progress)
    assert measurement.failure is None
    assert measurement.score is not None
    return {test.name: test for test in measurement.compliance}


STREAMS = {
    "single_stream": ["scenario.expected_latency_ms=0.2"],
    "multi_stream": ["scenario.expected_latency_ms=1", "scenario.min_query_count=662"],
    "offline": ["scenario.target_qps=2000", "scenario.min_query_count=2000"],
}


@pytest.mark.parametrize("scenario", STREAMS)
def test_resnet_makes_both_tests_in_the_scenarios_of_the_edge(
    words: dict[str, list[str]], tmp_path: Path, scenario: str
) -> None:
    tests = run(tmp_path / "run", *words["resnet"], f"scenario={scenario}", *STREAMS[scenario])
    assert list(tests) == ["TEST01", "TEST04"]
    assert tests["TEST01"].checks["accuracy"], tests["TEST01"].reasons
    assert tests["TEST01"].figures["samples"] > 40
    agrees_with_mlcommons(tests, tmp_path / "run", "int32")


def test_bert_makes_test01(words: dict[str, list[str]], tmp_path: Path) -> None:
    tests = run(tmp_path / "run", *words["bert"], "scenario=offline", *STREAMS["offline"])
    assert list(tests) == ["TEST01"]
    assert tests["TEST01"].checks["accuracy"], tests["TEST01"].reasons
    agrees_with_mlcommons(tests, tmp_path / "run", "float32")


def agrees_with_mlcommons(tests: dict[str, ComplianceTest], folder: Path, dtype: str) -> None:
    """The reference's own scripts on the same logs, where a checkout is named; else nothing."""
    checkout = os.environ.get("MLCOMMONS_INFERENCE")
    if not checkout:
        return
    (folder / "performance" / "run_1").mkdir()
    for log in ("mlperf_log_summary.txt", "mlperf_log_detail.txt"):
        (folder / "performance" / "run_1" / log).write_bytes((folder / "performance" / log).read_bytes())
    for name, test in tests.items():
        out = folder / "official"
        command = [sys.executable, f"{checkout}/compliance/{name}/run_verification.py", "-r", str(folder),
                   "-c", str(test.log_dir), "-o", str(out)]  # fmt: skip
        command += ["--dtype", dtype] if name == "TEST01" else []
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        speed = "TEST PASS" in (out / name / "verify_performance.txt").read_text()
        assert speed == test.checks["performance"], (out / name / "verify_performance.txt").read_text()
        if name == "TEST01":
            said = (out / name / "verify_accuracy.txt").read_text()
            assert "TEST PASS" in said or test.figures.get("differing"), said


class Wavering:
    """A system between LoadGen and the network that, once told to, gives wrong answers."""

    def __init__(self, system: Torch, wrong: np.dtype[Any]) -> None:
        self.system, self.wrong, self.lying = system, wrong, False

    def load(self, samples: Sequence[int]) -> None:
        self.system.load(samples)

    def unload(self, samples: Sequence[int]) -> None:
        pass

    def submit(self, queries: Sequence[Query], sink: Sink) -> None:
        self.sink = sink
        self.system.submit(queries, self)

    def complete(self, completions: Any) -> None:
        self.sink.complete(completions)

    def failed(self, reason: str) -> None:
        self.sink.failed(reason)

    def complete_many(self, answers: Answers) -> None:
        data = answers.data.copy()
        if self.lying:
            data.reshape(-1).view(self.wrong)[:] = 11
        self.sink.complete_many(Answers(answers.rows, data, answers.offsets))


@pytest.mark.parametrize(("kind", "wrong", "line"), [("resnet", "int32", "accuracy="), ("bert", "float32", '"f1"')])
def test_answers_that_differ_are_scored_by_the_benchmarks_own_scorer(
    words: dict[str, list[str]], tmp_path: Path, kind: str, wrong: str, line: str
) -> None:
    short = ["scenario=offline", "scenario.min_query_count=500", "scenario.min_duration_s=0"]
    it: Plan = make_plan(compose("config", [*words[kind], *short]), tmp_path)
    found = inputs.load(it)
    system = Torch(it, found.model)
    system.start(found.samples)
    try:
        wavering: Any = Wavering(system, np.dtype(wrong))
        for mode in ("performance", "accuracy"):
            (tmp_path / mode).mkdir()
            loadgen.run_test(it, mode, wavering, len(found.samples), tmp_path / mode, lambda live: None)
        wavering.lying = True
        with Progress(it) as progress:
            first = next(session.run(it, wavering, found, progress))
    finally:
        system.stop()
    assert first.name == "TEST01"
    assert first.figures["differing"] > 50
    before, now = first.figures["baseline_score"], first.figures["compliance_score"]
    if kind == "resnet":  # is right now and then with random weights; class 11 never
        assert before > now == 0
        assert f"their scores {before:g} and {now:g} lie" in str(first.reasons)
    assert first.checks["accuracy"] == (first.figures["apart_percent"] <= 1)
    for name in ("baseline_accuracy.txt", "compliance_accuracy.txt"):
        assert line in (first.log_dir / name).read_text()
