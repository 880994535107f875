"""A small Llama on real ranks: one and two make the same weights, a torn checkpoint, and the command."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mlperf_exp.data.tiny_texts import TRAIN, VALIDATION, write_texts
from mlperf_exp.train import supervise
from mlperf_exp.train.job import Optimization, Submission
from mlperf_exp.train.progress_log import read
from tests.train.few import Done
from tests.train.test_order import make_job
from tests.train.test_text_order import task

pytestmark = pytest.mark.timeout(900)  # several starts of PyTorch, on a machine that may be busy
STEPS = 12


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_texts(folder / "texts", folder / "models")


def run(folder, texts, **changes):
    """Twelve steps of 8 sequences, evaluated on 9 after each four."""
    shape = task(
        vocab_size=2048, sequence_length=64, train=(TRAIN,), validation=VALIDATION, hidden_size=64, head_dim=32,
        intermediate_size=128,
    )  # fmt: skip
    values = {
        "run_dir": str(folder), "data": str(texts), "task": shape, "train_samples": 4000, "eval_samples": 9,
        "optimization": Optimization("adamw", 4e-3, 4e-4, 3, STEPS - 3, 1.0, 0.0, 0.1), "target": 0.1, "threads": 1,
        "submission": Submission("llama31_8b", "open", "me", "here", "research"), "log_every_steps": 1,
    }  # fmt: skip
    job = make_job(**(values | changes), max_steps=STEPS, first_eval=4, eval_every=4)
    job.folder.mkdir(parents=True, exist_ok=True)
    job.write(job.folder / "job.json")
    assert supervise.run(job, supervise.Nodes.from_environment(1), lambda: None) == supervise.Ended(None, False)
    return job


def weights(job):
    return torch.load(max(job.folder.glob("checkpoints/step-*.pt")), weights_only=True)["network"]


def figures(job):
    history = read(job.folder / "progress.jsonl")
    return [line.loss for line in history.lines], [it.value for it in history.evaluations]


@pytest.fixture(scope="module")
def alone(texts, tmp_path_factory):
    """One rank that takes the micro-batches of two in turn, with a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("alone")
    return run(folder, texts, micro_batch=4, accumulation=2, checkpoint_every_s=1e-6, checkpoints_kept=20)


def test_two_ranks_make_the_losses_and_weights_of_one(alone, texts, tmp_path):
    both = run(tmp_path, texts, micro_batch=4, world=2)
    (losses, one), (_, two) = figures(alone), figures(both)  # the losses of steps are of rank 0's share
    assert len(one) == 3
    assert one == pytest.approx(two, rel=1e-5)
    assert losses[-1] < losses[0] - 1
    expected, found = weights(alone), weights(both)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_after_a_torn_checkpoint_the_one_before_gives_the_same_weights(alone, texts, tmp_path):
    folder = shutil.copytree(alone.run_dir, tmp_path / "run")
    for path in sorted(folder.glob("train/checkpoints/step-*.pt")):
        step = int(path.stem.removeprefix("step-"))
        if step > 7:
            path.unlink()
        elif step == 7:
            os.truncate(path, path.stat().st_size // 2)
    again = run(folder, texts, micro_batch=4, accumulation=2)
    outcome = json.loads((again.folder / "outcome.json").read_text())
    assert outcome["first_step"] == 6
    assert "step-00000007.pt is torn" in outcome["notes"][0]
    expected, found = weights(alone), weights(again)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert figures(again)[1] == figures(alone)[1]


def test_the_command_reaches_its_target_and_mlperf_s_checker_accepts_the_log(tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "mlperf_exp", "experiment=train_llama_tiny", f"hydra.run.dir={folder}",
             "tracking.enabled=false", "backend.threads=1", "scenario.target=0.9",
             "scenario.eval_every_samples=400"]  # fmt: skip
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    result = Done(0, ended.stdout, ended.stderr, folder).result
    assert result["verdict"]["valid"], result["verdict"]["reasons"]
    assert result["verdict"]["compliance"]["mllog"]["checks"] == {"ruleset 6.1.0": True}
    metrics = result["metrics"]
    assert metrics["log_perplexity"] <= 0.9
    assert metrics["train_tokens_per_second"] == pytest.approx(128 * metrics["train_samples_per_second"])
    page = (folder / "report.html").read_text()
    for words_ in ("Training loss", "Log perplexity", "Tokens per second", "run_start"):
        assert words_ in page
    assert "TTFT" not in page
    live = [json.loads(line) for line in (folder / "live.jsonl").read_text().splitlines()]
    assert live[-1]["loss"] > 0
    checker = ["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "6.1.0", "--werror"]
    checked = subprocess.run([sys.executable, *checker, "result_0.txt"], capture_output=True, text=True,
                             cwd=folder / "train", check=False)  # fmt: skip
    assert "SUCCESS" in checked.stdout + checked.stderr
