"""Two hosts (network namespaces joined by a virtual cable), one process each: the weights of one process alone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.train.few import few_digits, run, weights, words

CLUSTERS = Path(__file__).parent.parent / "clusters"


def missing() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if any(shutil.which(name) is None for name in ("ip", "nsenter", "unshare")):
        return "ip, nsenter and unshare are not installed (Debian: iproute2, util-linux)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces: {probe.stderr.strip()}" if probe.returncode else None


@pytest.fixture
def hosts():
    why = missing()
    if why:
        pytest.skip(f"two hosts cannot be made here: {why}")
    number = os.getpid() % 250 + 1
    prefix, subnet = f"t{number}n", f"10.96.{number}"
    net = str(CLUSTERS / "net.sh")
    try:
        subprocess.run([net, "up", prefix, subnet], check=True, capture_output=True)
        yield prefix, subnet
    finally:
        subprocess.run([net, "down", prefix, subnet], check=False)


def start(host, rank, address, folder, data, *more):
    variables = {
        "RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": address, "MASTER_PORT": "29555", "GLOO_SOCKET_IFNAME": "eth0",
    }  # fmt: skip
    return subprocess.Popen(
        [str(CLUSTERS / "onhost.sh"), host, *words(folder, data, "hw.nodes=2", "backend.micro_batch=8", *more)],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
    )


@pytest.mark.timeout(900)  # three starts of PyTorch, on a machine that may be busy
def test_two_hosts_make_the_weights_of_one_process(hosts, tmp_path):
    """No folder is shared: the second host's process keeps no record, and leaves with the first one's status."""
    prefix, subnet = hosts
    data = few_digits(tmp_path)
    # at the usual rate a network on eight images grows rounding errors tenfold with each step
    slow = ("scenario.max_epochs=1", "scenario.base_lr=0.001", "scenario.warmup_epochs=0")
    alone = run(tmp_path / "alone", data, "backend.micro_batch=8", *slow)
    assert alone.status == 0, alone.stderr
    both = [start(f"{prefix}{rank + 1}", rank, f"{subnet}.1", tmp_path / f"host{rank}", data, *slow) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=400)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "host0")
    for name in one:
        if "running_" not in name and "num_batches" not in name:  # one saw all micro-batches, each host only half
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not (tmp_path / "host1" / "result.json").exists()
    assert not list((tmp_path / "host1").glob("train/checkpoints/*"))
