"""One training over two hosts with a network of their own: the weights of one process, and a host that is cut off."""

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.clusters.hosts import two_hosts
from tests.train.few import Done, few_digits, run, words

pytestmark = pytest.mark.timeout(900)  # several starts of PyTorch, on a machine that may be busy
PORT = "29541"


@pytest.fixture(scope="module")
def hosts():
    with two_hosts("t") as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 images: a step an epoch."""
    return few_digits(tmp_path_factory.mktemp("data"), train=2)


def start(hosts, folder, data, *more):
    """The same command on both, in the environment that a launcher gives; each host has its own folder."""
    started = []
    for rank, name in enumerate(hosts.names):
        place = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                 "GROUP_RANK": str(rank), "MASTER_ADDR": hosts.names[0], "MASTER_PORT": PORT}  # fmt: skip
        own = folder / name
        own.mkdir(parents=True)
        command = hosts.on(name, *words(own / "run", data, "hw.nodes=2", "progress=false", *more))
        started.append(
            subprocess.Popen(command, cwd=own, env=os.environ | place, stdout=subprocess.DEVNULL, stderr=-1, text=True)
        )
    return started


def ends(hosts, folder, started, timeout_s=400):
    found = []
    for process, name in zip(started, hosts.names, strict=True):
        _, stderr = process.communicate(timeout=timeout_s)
        found.append(Done(process.returncode, "", stderr, folder / name / "run"))
    return found


def test_two_hosts_make_the_weights_of_one_process(hosts, data, tmp_path):
    """The same global batch in the same micro-batches: one process takes them in turn, the hosts side by side.

    One step: the digits' flat ground makes batch norm's first gradients a difference of nearly equal numbers, which
    more steps would let grow. On one host two ranks make the very weights of one (``test_ranks.py``).
    """
    settings = ("backend.micro_batch=8", "scenario.target=100", "scenario.max_epochs=1", "scenario.warmup_epochs=0")
    first, second = ends(hosts, tmp_path, start(hosts, tmp_path, data, *settings))
    assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
    alone = run(tmp_path / "alone/run", data, *settings, "progress=false")
    assert alone.status == 0, alone.stderr
    expected, found = alone.weights(), first.weights()
    for name in expected:
        if "running_" not in name and "num_batches" not in name:  # each host's batch norm saw its half
            deep = not name.startswith(("conv1", "bn1", "layer1"))
            near = {"rtol": 1e-5, "atol": 1e-6} if deep else {"rtol": 1e-3, "atol": 1e-3}
            torch.testing.assert_close(found[name], expected[name], **near, msg=name)
    assert expected["layer2.0.bn1.bias"].abs().max() > 1e-4  # it was 0: what was learnt is far above what may differ
    training = first.result["training"]
    assert (training["ranks"], training["step"]) == (2, 1)
    assert not (second.folder / "result.json").exists()  # the first node keeps the record


def test_torchrun_starts_the_same(hosts, data, tmp_path):
    """torchrun's own rendezvous holds the port that it names; the run takes others."""
    started = []
    for name in hosts.names:
        own = tmp_path / name
        own.mkdir()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                    "--rdzv-backend=c10d", f"--rdzv-endpoint={hosts.names[0]}:29571", "-m", "mlperf_exp"]  # fmt: skip
        more = words(own / "run", data, "hw.nodes=2", "progress=false", "scenario.max_epochs=1")
        command = hosts.on(name, *torchrun, *more[3:])
        started.append(subprocess.Popen(command, cwd=own, stdout=subprocess.DEVNULL, stderr=-1, text=True))
    done = ends(hosts, tmp_path, started)
    assert [one.status for one in done] == [0, 0], done[0].stderr + done[1].stderr
    kept = [one.folder for one in done if (one.folder / "result.json").exists()]
    assert len(kept) == 1


def test_a_host_that_is_cut_off_ends_the_run_with_its_name(hosts, data, tmp_path):
    started = start(hosts, tmp_path, data, "scenario.max_epochs=1000", "scenario.target=100",
                    "scenario.eval_offset=1000", "scenario.eval_period=1000")  # fmt: skip
    progress = tmp_path / hosts.names[0] / "run/train/progress.jsonl"
    end = time.monotonic() + 300
    while not progress.exists() or '"step"' not in progress.read_text():
        assert started[0].poll() is None, started[0].communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)
    hosts.cut(hosts.names[1])
    cut_at = time.monotonic()
    try:
        first, second = ends(hosts, tmp_path, started, 200)
    finally:
        hosts.mend(hosts.names[1])
    assert time.monotonic() - cut_at < 120
    assert (first.status, second.status) == (1, 1), first.stderr + second.stderr
    assert hosts.names[1] in first.last_line
    assert "has not been heard of" in first.last_line
    assert hosts.names[0] in second.last_line
    assert first.result["run"]["status"] == "failed"
    assert first.result["training"]["step"] > 0
