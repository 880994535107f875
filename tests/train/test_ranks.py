"""Real ranks on real JPEGs: the supervisor, the workers, MLPerf's own checker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlperf_exp.train import supervise
from tests.train.few import few_digits
from tests.train.test_order import make_job

pytestmark = pytest.mark.timeout(900)  # several starts of PyTorch, on a machine that may be busy


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """80 training and 10 validation images of the digits."""
    return few_digits(tmp_path_factory.mktemp("data"), train=8, val=1)


def run(folder, data, on_look=lambda: None, **changes):
    job = make_job(
        run_dir=str(folder),
        data=str(data),
        train_samples=80,
        eval_samples=10,
        threads=1,
        **{"max_epochs": 2, **changes},
    )
    job.folder.mkdir(parents=True)
    job.write(job.folder / "job.json")
    ended = supervise.run(job, supervise.Nodes.from_environment(1), on_look)
    return job, ended


def weights(job):
    path = max(job.folder.glob("checkpoints/step-*.pt"))
    return torch.load(path, weights_only=True)["network"]


def test_two_ranks_make_the_weights_of_one_and_the_log_is_accepted(few, tmp_path):
    """The same global batch and batch norm span: two ranks, and one that takes their micro-batches in turn."""
    alone, ended = run(tmp_path / "alone", few, micro_batch=16, accumulation=2)
    assert ended == supervise.Ended(None, False)
    both, ended = run(tmp_path / "both", few, micro_batch=16, world=2)
    assert ended == supervise.Ended(None, False)
    one, two = weights(alone), weights(both)
    for name in one:
        if "running_" not in name and "num_batches" not in name:  # one saw all micro-batches, each of two only half
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)
    outcome = json.loads((both.folder / "outcome.json").read_text())
    assert (outcome["status"], outcome["step"]) == ("missed", 4)
    words = ["-m", "mlperf_logging.compliance_checker", "--ruleset", "4.0.0", "--werror", "result_0.txt"]
    checked = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=both.folder, check=False)
    assert "SUCCESS" in checked.stdout + checked.stderr


def failure_of(folder, few, number, **changes):
    """What is said of an endless run of two ranks whose rank 1 gets a signal; none of them is left."""
    hurt = []

    def send():
        if not hurt and (folder / "train/progress.jsonl").exists():
            hurt.append(next(pid for pid in ranks(folder) if rank_of(pid) == "1"))
            os.kill(hurt[0], number)

    endless = {"max_epochs": 2000, "eval_offset": 2000, "eval_period": 2000}
    _, ended = run(folder, few, send, micro_batch=8, world=2, **endless, **changes)
    assert hurt
    assert ended.failure is not None
    assert ended.failure.startswith("rank 1 on ")
    assert not ranks(folder)
    return ended.failure


def test_a_lost_rank_ends_all_and_is_named(few, tmp_path):
    assert "SIGKILL" in failure_of(tmp_path / "run", few, signal.SIGKILL)


def test_a_rank_that_hangs_ends_all_and_is_named(few, tmp_path):
    said = failure_of(tmp_path / "run", few, signal.SIGSTOP, stall_timeout_s=60.0)
    assert said.endswith("made no step in 60 s (scenario.stall_timeout_s) (it is stopped)")


def test_a_truncated_image_is_named(few, tmp_path):
    data = tmp_path / "data"
    for path in few.rglob("*.jpg"):
        target = data / path.relative_to(few)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        target.write_bytes(content[: len(content) // 3] if "train/3" in str(path) else content)
    _, ended = run(tmp_path / "run", data, micro_batch=16)
    assert ended.failure is not None
    assert "cannot be read as an image" in ended.failure


def ranks(run_dir):
    """The process ids of the run's ranks."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlperf_exp.train.worker" in words and str(run_dir / "train/job.json").encode() in words:
            found.append(int(folder.name))
    return found


def rank_of(pid):
    pairs = dict(item.split(b"=", 1) for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in item)
    return pairs[b"RANK"].decode()
