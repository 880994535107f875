"""The training command stopped in every way, and started again: the weights of an undisturbed run, bit by bit."""

import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import torch

from tests.train.few import Done, few_digits, run, words

pytestmark = pytest.mark.timeout(900)  # several starts of PyTorch, on a machine that may be busy
SETTINGS = ("scenario.target=100", "backend.checkpoint_every_s=0.3", "backend.checkpoints_kept=5", "progress=false")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """400 images: 25 steps an epoch."""
    return few_digits(tmp_path_factory.mktemp("data"), train=40)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    done = run(tmp_path_factory.mktemp("whole") / "run", data, *SETTINGS)
    assert done.status == 0, done.stderr
    return done.weights()


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
    """A run killed amid its second epoch, to be copied."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    assert stopped(folder, data, lambda process: process.kill()).status == -signal.SIGKILL
    return folder


def stopped(folder, data, how, *more):
    """A run that is stopped amid its second epoch, after a checkpoint there; ``how`` does it."""
    folder.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        words(folder, data, *SETTINGS, *more), cwd=folder.parent, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 300
    while not any(25 < step(path) < 50 for path in (folder / "train/checkpoints").glob("step-*.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)
    ranks = psutil.Process(process.pid).children(recursive=True)
    how(process)
    _, stderr = process.communicate(timeout=120)
    psutil.wait_procs(ranks, timeout=60)
    assert not any(rank.is_running() for rank in ranks)
    return Done(process.returncode, "", stderr, folder)


def step(path):
    return int(path.stem.removeprefix("step-"))


def newest(folder):
    return max((folder / "train/checkpoints").glob("step-*.pt"))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_killed_it_goes_on_in_the_middle_of_an_epoch(data, whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    saved = step(newest(folder))
    done = run(folder, data, *SETTINGS)
    assert done.status == 0, done.stderr
    assert_equal(done.weights(), whole)
    training = done.result["training"]
    assert (training["first_step"], training["step"], training["lives"]) == (saved, 75, 2)
    assert [one["epoch"] for one in training["evaluations"]] == [1, 2, 3]
    assert any("went on from" in reason for reason in done.result["verdict"]["reasons"])


def test_sigterm_keeps_where_it_stood(data, whole, tmp_path):
    folder = tmp_path / "run"
    ended = stopped(folder, data, lambda process: process.terminate())
    assert ended.status == 130, ended.stderr
    result = ended.result
    assert result["run"]["status"] == "interrupted"
    assert result["training"]["step"] == step(newest(folder)) < 75
    done = run(folder, data, *SETTINGS)
    assert done.status == 0, done.stderr
    assert_equal(done.weights(), whole)
    assert done.result["training"]["first_step"] == result["training"]["step"]


def test_a_torn_checkpoint_is_told_and_the_one_before_used(data, whole, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    torn = newest(folder)
    os.truncate(torn, torn.stat().st_size // 2)
    done = run(folder, data, *SETTINGS)
    assert done.status == 0, done.stderr
    assert_equal(done.weights(), whole)
    assert done.result["training"]["first_step"] < step(torn)
    assert any(torn.name in warning for warning in done.result["verdict"]["warnings"])


def test_a_lost_rank_ends_the_run_with_its_name_and_the_next_start_goes_on(data, tmp_path):
    folder = tmp_path / "run"

    def lose(process):
        for child in psutil.Process(process.pid).children(recursive=True):
            if "mlperf_exp.train.worker" in child.cmdline() and child.environ()["RANK"] == "1":
                child.kill()

    two = ("backend.processes=2",)
    ended = stopped(folder, data, lose, *two)
    assert ended.status == 1
    assert "rank 1 on " in ended.last_line
    assert "SIGKILL" in ended.last_line
    done = run(folder, data, *SETTINGS, *two)
    assert done.status == 0, done.stderr
    assert done.result["training"]["step"] == 75
    assert done.result["training"]["first_step"] > 25


def test_a_loss_that_is_no_number_fails_the_run_and_names_the_step(data, tmp_path):
    done = run(tmp_path / "run", data, *SETTINGS, "scenario.base_lr=1e6", "scenario.warmup_epochs=0")
    assert done.status == 1
    assert "step " in done.last_line
    assert "loss" in done.last_line
    assert done.result["run"]["status"] == "failed"


def test_a_checkpoint_of_another_model_is_refused(data, killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "run")
    done = run(folder, data, *SETTINGS, "seed=7")
    assert done.status == 2
    assert done.last_line.startswith("mlperf_exp: resume: ")
    assert "seed" in done.last_line
