"""The torch backend on a processor: kernels against PyTorch's, BERT against transformers', queries under faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from mlperf_exp import batches, cli, networks
from mlperf_exp.config import ExtractiveQa
from mlperf_exp.data.tokens import synthetic
from mlperf_exp.kinds.images import synthetic as random_images
from mlperf_exp.messages import Answers, Completion, Plan, Queries
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.forward.bert import PackedBert
from mlperf_exp.sut.forward.executor import Executor
from mlperf_exp.sut.forward.fuse import FusedConv, fuse, pad_input_channels
from mlperf_exp.sut.forward.questions import QuestionProgram
from mlperf_exp.sut.torch import Torch

SHAPE = ExtractiveQa(
    name="t", path="t", layers=2, hidden_size=32, intermediate_size=64, heads=4, vocab_size=100, max_positions=64,
    max_tokens=64,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    torch.set_num_threads(1)
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words: str) -> Plan:
    base = ["model=resnet50", "model.network=resnet_tiny", "model.classes=10", "model.image_size=32", "model.resize=32",
            "model.weights=dummy", "dataset=synthetic_images", "hw=cpu", "backend.max_batch=8"]  # fmt: skip
    return make_plan(compose("config", [*base, *words]), Path("run"))


@pytest.mark.parametrize(("name", "side"), [("resnet50", 64), ("resnet_tiny", 32)])
def test_fusing_changes_no_logit(name: str, side: int) -> None:
    torch.manual_seed(0)
    network = networks.build(name, 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    fused = fuse(network).to(memory_format=torch.channels_last)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    downsampling = {"resnet50": 4, "resnet_tiny": 3}[name]
    assert sum(isinstance(module, FusedConv) for module in fused.modules()) == convolutions - downsampling
    x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = network(x)
        torch.testing.assert_close(fused(x), wanted, rtol=1e-4, atol=1e-4)
        pad_input_channels(fused, 4)
        wide = nn.functional.pad(x, (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fused(wide), wanted, rtol=1e-4, atol=1e-4)


def test_packed_bert_answers_as_transformers_does() -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    shape = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                       intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    network = BertForQuestionAnswering(shape).eval()
    tokens = synthetic(20, 30, 0.4, 64, 100, 1)
    program = QuestionProgram(tokens, lambda device: PackedBert(SHAPE, network.state_dict(), torch.float32, device))
    program.load(range(20))
    executor = Executor(program, "cpu", slots=1, graphs=False, warmup=1)
    executor.start(batches.sizes(256, packed=True, fine=False), range(20))
    asked = np.array([3, 11, 7])
    executor.launch(executor.slots[0], 256, asked)
    data, offsets = executor.wait(executor.slots[0], 256, asked)
    raw = data.reshape(-1).view(np.uint8)
    for place, sample in enumerate(asked):
        found = raw[offsets[place] : offsets[place + 1]].view(np.float32).reshape(-1, 2)
        rows = torch.from_numpy(tokens.values[tokens.begins[sample] : tokens.begins[sample + 1]]).long()
        with torch.no_grad():
            wanted = network(input_ids=rows[None, :, 0], token_type_ids=rows[None, :, 1])
        assert np.allclose(found[:, 0], wanted.start_logits[0], atol=1e-5)
        assert np.allclose(found[:, 1], wanted.end_logits[0], atol=1e-5)


def test_triton_kernels_compute_what_pytorch_does() -> None:
    """By Triton's interpreter, which needs no GPU; in a process of its own, for it is chosen at the import."""
    pytest.importorskip("triton")
    code = """
import torch
from torch import nn
from mlperf_exp.sut.forward import kernels
x, y, w, b = torch.randn(5, 96), torch.randn(5, 96), torch.randn(96), torch.randn(96)
wanted = nn.functional.layer_norm(x + y, (96,), w, b, 1e-12)
torch.testing.assert_close(kernels.add_norm(x, y, w, b, 1e-12), wanted, rtol=1e-5, atol=1e-5)
pixels, mean, scale = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8), torch.rand(4), torch.rand(4)
scale[3] = 0
made = kernels.normalize(pixels, mean, scale, torch.float32)
torch.testing.assert_close(made[:, :3], ((pixels - mean[:3]) * scale[:3]).permute(0, 3, 1, 2))
assert not made[:, 3].any() and made.is_contiguous(memory_format=torch.channels_last)
pool, images = nn.MaxPool2d(3, 2, 1), torch.randn(2, 8, 11, 12).contiguous(memory_format=torch.channels_last)
torch.testing.assert_close(kernels.MaxPool(pool)(images), pool(images))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Asked:
    """A sink that counts."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}
        self.errors: dict[int, str] = {}
        self.lost: str | None = None
        self.twice = 0

    def first_token(self, rows: Sequence[int], tokens: Sequence[int] = ()) -> None:
        raise AssertionError("no token is the first")

    def complete(self, completions: Sequence[Completion]) -> None:
        self.errors |= {done.row: str(done.error) for done in completions}

    def complete_many(self, answers: Answers) -> None:
        raw = answers.data.reshape(-1).view(np.uint8)
        for place, row in enumerate(answers.rows.tolist()):
            self.twice += row in self.answers
            self.answers[row] = raw[answers.offsets[place] : answers.offsets[place + 1]].tobytes()

    def failed(self, reason: str) -> None:
        self.lost = reason


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def started() -> Iterator[tuple[Torch, Any]]:
    it = plan()
    images = random_images(it.config.model, 20, 1)
    system = Torch(it, None)
    assert system.start(images)["warmup_s"] > 0
    yield system, images
    system.stop()


def test_every_query_is_answered_once_whatever_its_batch(started: tuple[Torch, Any]) -> None:
    system, _ = started
    system.load(range(20))
    sink, order = Asked(), np.random.default_rng(0).integers(0, 20, 99).tolist()
    system.submit(Queries(0, order[:61]), sink)
    for row in range(61, 99):
        system.submit(Queries(row, [order[row]]), sink)
    until(lambda: len(sink.answers) == 99)
    assert not sink.twice and not sink.errors
    by_sample: dict[int, set[bytes]] = {}
    for row, sample in enumerate(order):
        by_sample.setdefault(sample, set()).add(sink.answers[row])
    assert all(len(answers) == 1 for answers in by_sample.values()), "an answer is the sample's, not its batch's"
    metrics, warnings = system.report()
    assert metrics["peak_memory_gib"] > 0 and not warnings
    system.stop()
    system.stop()
    system.submit(Queries(99, [1]), sink)
    assert sink.errors == {99: "stopped"}


def test_a_batch_that_breaks_fails_the_run_and_not_the_process(
    started: tuple[Torch, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = started

    def broken(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(system._program, "forward", broken)
    sink = Asked()
    system.submit(Queries(0, [1, 2, 3]), sink)
    until(lambda: sink.lost is not None)
    assert "OutOfMemoryError: no memory left" in str(sink.lost)


def test_out_of_memory_in_the_warm_up_halves_the_batch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlperf_exp.sut.forward.images import ImageProgram

    forward = ImageProgram.forward

    def small_only(self: Any, *inputs: Any) -> Any:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("no")
        return forward(self, *inputs)

    monkeypatch.setattr(ImageProgram, "forward", small_only)
    it = plan()
    system = Torch(it, None)
    system.start(random_images(it.config.model, 20, 1))
    _, warnings = system.report()
    assert warnings[0] == "A batch of 8 does not fit into the memory; 4 is tried."
    assert max(system._sizes) == 2
    system.stop()


class Waits(Asked):
    """A sink that says which thread answered."""

    def complete_many(self, answers: Answers) -> None:
        assert threading.current_thread() is threading.main_thread()
        super().complete_many(answers)


@pytest.mark.parametrize(("scenario", "count"), [("single_stream", 1), ("multi_stream", 8)])
def test_one_query_at_a_time_is_answered_before_submit_returns(scenario: str, count: int) -> None:
    it = plan(f"scenario={scenario}", "backend.max_wait_ms=500")
    images = random_images(it.config.model, 20, 1)
    system = Torch(it, None)
    system.start(images)
    system.load(range(20))
    sink = Waits()
    for row in range(0, 5 * count, count):
        system.submit(Queries(row, [(row + n) % 20 for n in range(count)]), sink)
        assert len(sink.answers) == row + count
    assert not sink.twice and not sink.errors and system.computes
    assert not any(thread.name.startswith("torch_") for thread in threading.enumerate())
    system.stop()
    system.submit(Queries(99, [1]), sink)
    assert sink.errors == {99: "stopped"}


def test_answers_do_not_depend_on_who_computes() -> None:
    """The same samples in single stream and offline."""
    found = []
    for scenario in ("single_stream", "offline"):
        it = plan(f"scenario={scenario}")
        system = Torch(it, None)
        torch.manual_seed(0)
        system.start(random_images(it.config.model, 20, 1))
        sink = Asked()
        for row in range(20):
            system.submit(Queries(row, [row]), sink)
        until(lambda sink=sink: len(sink.answers) == 20)
        found.append(sink.answers)
        system.stop()
    assert found[0] == found[1]


@pytest.mark.parametrize("scenario", ["single_stream", "multi_stream", "offline", "server"])
def test_out_of_memory_in_a_run_fails_the_run_and_not_the_process(
    scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real LoadGen: all queries end, the run says why."""
    from mlperf_exp import loadgen
    from mlperf_exp.sut.forward.images import ImageProgram

    words = ["scenario.min_duration_s=0.5", "scenario.min_query_count=700", "scenario.mode=performance"]
    words += ["scenario.target_qps=700"] if scenario == "server" else []  # LoadGen sends all of them, and then ends
    it = plan(f"scenario={scenario}", *words)
    images = random_images(it.config.model, 20, 1)
    system = Torch(it, None)
    system.start(images)
    forward, calls = ImageProgram.forward, [0]

    def runs_out(self: Any, *inputs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *inputs)

    monkeypatch.setattr(ImageProgram, "forward", runs_out)
    outcome = loadgen.run_test(it, "performance", system, 20, tmp_path, lambda live: None)
    assert outcome.failure is not None
    assert outcome.failure.startswith("PyTorch failed: OutOfMemoryError: CUDA out of memory.")
    records = outcome.records
    assert len(records.finished) == records.issued and records.errors and not records.duplicates
    assert outcome.finished
    system.stop()


def test_memory_stays_with_the_process() -> None:
    """Large arrays of a thread do not cost page faults each time; in a process of its own, for the settings stay."""
    code = """
import resource, threading
import torch
from mlperf_exp.sut.forward.memory import keep_freed_memory
assert keep_freed_memory()
faults = []
def work():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(48 << 20)  # 192 MiB
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert faults[0] > 10_000 and sum(faults) < 3 * faults[0], faults  # without the setting, four times as many
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_sizes_rise_to_the_largest() -> None:
    assert batches.sizes(32, packed=False, fine=False) == [1, 2, 4, 8, 16, 32]
    fine = batches.sizes(64, packed=False, fine=True)
    assert fine[:8] == [1, 2, 4, 8, 10, 12, 14, 16] and fine[-1] == 64
    packed = batches.sizes(4096, packed=True, fine=False)
    assert packed[:8] == list(range(64, 513, 64)) and packed[-1] == 4096 and all(size % 64 == 0 for size in packed)
