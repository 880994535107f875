"""The doctor: on this machine, over loopback, and on two hosts (network namespaces) that meet as a job's nodes do."""

from __future__ import annotations

import compileall
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlperf_exp.config import Device, DoctorConfig, Hardware
from mlperf_exp.doctor import gpu, host
from mlperf_exp.doctor.__main__ import arguments
from mlperf_exp.doctor.check import Check, Status, graded
from mlperf_exp.doctor.examine import link_checks
from mlperf_exp.doctor.link import Link, measure, serving
from mlperf_exp.doctor.peers import Place
from mlperf_exp.doctor.report import as_json
from mlperf_exp.environment import Gpu
from tests.clusters.hosts import Hosts, two_hosts


def doctor(*overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlperf_exp.doctor", "disk_mib=4", "seconds=0.3", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=cwd, env={**os.environ, **env})


def test_this_machine_is_fit_for_the_profile_of_any_processor(tmp_path: Path) -> None:
    done = doctor("hw=cpu", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    statuses = {check["status"] for check in report["checks"]}
    assert done.returncode == (1 if "fail" in statuses else 0), done.stderr
    assert {"GPUs", "disk space", "disk speed", "shared memory", "own name"} <= {c["name"] for c in report["checks"]}
    assert report["nodes"] == [socket.gethostname()]
    (folder,) = (tmp_path / "outputs" / "doctor").iterdir()
    assert json.loads((folder / "doctor.json").read_text()) == report


def test_a_gpu_that_is_not_there_fails_in_the_table_and_in_one_line(tmp_path: Path) -> None:
    done = doctor("hw=a30", cwd=tmp_path, CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 1
    assert "GPUs" in done.stdout and "none; a30 wants 1" in done.stdout and "→ See nvidia-smi" in done.stdout
    assert len(done.stderr.splitlines()) == 1 and "checks failed: " in done.stderr


def test_a_slip_is_the_user_s(tmp_path: Path) -> None:
    done = doctor("hw=a31", cwd=tmp_path)
    assert done.returncode == 2 and "hw: there is no 'a31'" in done.stderr


def test_a_launcher_runs_it_on_each_node() -> None:
    assert arguments(["hw=cpu", "--json"]) == ["hw=cpu", "json=true"]
    assert arguments(["hydra/launcher=slurm"]) == ["hydra/launcher=slurm", "hydra.launcher.run_on=each"]
    assert arguments(["hydra/launcher=local"]) == ["hydra/launcher=local"]
    chosen = ["hydra/launcher=slurm", "hydra.launcher.run_on=first"]
    assert arguments(chosen) == chosen


@pytest.mark.parametrize(
    ("value", "more", "status"),
    [
        (10.0, True, Status.passed),
        (5.0, True, Status.warn),
        (1.0, True, Status.fail),
        (float("nan"), True, Status.fail),
        (1.0, False, Status.passed),
        (11.0, False, Status.fail),
    ],
)
def test_bounds_grade_and_only_trouble_has_a_remedy(value: float, more: bool, status: Status) -> None:
    good, bearable = (8.0, 4.0) if more else (4.0, 8.0)
    check = graded("x", value, "found", "do", good=good, bearable=bearable, more_is_better=more)
    assert check.status is status and bool(check.remedy) is (status is not Status.passed)


def profile(**more: Any) -> Hardware:
    values = {"name": "two", "nodes": 2, "gpus_per_node": 1, "gpu": "NVIDIA A30", "memory_gib": 23.5, "source": "test"}
    return Hardware(**{**values, **more})


@pytest.mark.parametrize(
    ("gbit_s", "latency_ms", "offset_ms", "statuses"),
    [
        (9.0, 0.2, 3.0, ["pass", "pass", "pass", "pass"]),
        (4.0, 3.0, -40.0, ["pass", "warn", "warn", "warn"]),
        (1.0, 30.0, -4000.0, ["pass", "fail", "fail", "fail"]),
    ],
)
def test_a_link_is_held_against_the_profile(
    gbit_s: float, latency_ms: float, offset_ms: float, statuses: list[str]
) -> None:
    found = link_checks(profile(network_gbit_s=10.0), "n2", Link(0.5, latency_ms, latency_ms, gbit_s, offset_ms))
    assert [check.name for check in found] == ["port reach", "latency", "bandwidth", "clock offset"]
    assert [check.status.value for check in found] == statuses
    without = link_checks(profile(), "n2", Link(0.5, 0.1, 0.1, 0.01, 0.0))
    assert without[2].status is Status.passed and "names no rate" in without[2].found


def test_a_link_is_measured() -> None:
    with serving() as server:
        link = measure("127.0.0.1", server.port, 0.3)
    assert 0 < link.latency_ms <= link.latency_p99_ms < 10_000
    assert link.gbit_s > 0.01 and abs(link.offset_ms) < 1000  # the same clock, on a busy machine
    with pytest.raises(OSError):
        measure("127.0.0.1", server.port, 0.3)


def card(index: int, name: str = "NVIDIA A30", used: float = 4.0, driver: str = "580.95.05") -> Gpu:
    return Gpu(index, name, 24062.0, used, driver)


@pytest.mark.parametrize(
    ("cards", "wanted"),
    [
        ([card(0)], {"GPUs": "pass", "GPU memory": "pass"}),
        ([], {"GPUs": "fail"}),
        ([card(0, "NVIDIA L4")], {"GPUs": "warn"}),
        ([card(0, used=8000)], {"GPU memory": "warn"}),
        ([card(0, used=20000)], {"GPU memory": "fail"}),
        ([card(0), card(1, used=20000)], {"GPU memory": "pass"}),  # the profile uses one
    ],
)
def test_gpus_are_held_against_the_profile(
    cards: list[Gpu], wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "gpus", lambda: cards)
    found = {check.name: check.status.value for check in gpu.checks(profile())}
    assert wanted.items() <= found.items()


@pytest.mark.parametrize(("reasons", "status"), [("0x1", "pass"), ("0x5", "pass"), ("0x41", "warn"), ("0x88", "warn")])
def test_clocks_that_heat_or_power_holds_back_are_told(
    reasons: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "gpus", lambda: [card(0)])
    monkeypatch.setattr(gpu, "_query", lambda *_: [["0", "1440", "1200", reasons, "81"]])
    assert {c.name: c.status.value for c in gpu.checks(profile())}["GPU clocks"] == status


def test_a_disk_that_is_full_or_read_only_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host, "write_speed", full)
    config = DoctorConfig(hw=Hardware(name="cpu", device=Device.cpu, memory_gib=1, source="x"), folder=str(tmp_path))
    disk = [check for check in host.checks(config) if check.name == "disk"]
    assert disk[0].status is Status.fail and "No space left" in disk[0].found
    assert not list(tmp_path.iterdir())


def test_packages_that_each_process_would_compile_anew_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "large_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert host.byte_code(["large_package", "no_such_package"]).status is Status.passed  # will be, by the first
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    lost = host.byte_code(["large_package"])
    assert lost.status is Status.warn
    assert "large_package" in lost.found
    assert f"compileall -q {tmp_path}" in lost.remedy
    compileall.compile_dir(str(package), quiet=1)
    assert host.byte_code(["large_package"]).status is Status.passed


def test_a_name_that_nobody_knows_fails() -> None:
    assert host.look_up("no-such-host.invalid", "x").status is Status.fail
    assert host.look_up("localhost", "x").status is not Status.fail


def test_a_place_is_torchrun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    place = Place.here()
    assert (place.nodes, place.node, place.leads) == (2, 1, False)


def test_a_report_fails_by_one_check() -> None:
    bad = as_json(profile(), [Check("a", Status.passed, ""), Check("b", Status.fail, "")])
    warned = as_json(profile(), [Check("a", Status.warn, "")])
    assert (bad["passed"], warned["passed"]) == (False, True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts("d") as made:
        yield made


def on_both(hosts: Hosts, folder: Path, *overrides: str, master: str) -> list[tuple[int, str, str]]:
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": master,
        "MASTER_PORT": "29533",
    }
    processes = []
    for i, name in enumerate(hosts.names):
        fixed = ["hw=cpu", "hw.nodes=2", "disk_mib=1", "seconds=0.3", f"hydra.run.dir={folder / str(i)}"]
        command = hosts.on(name, sys.executable, "-m", "mlperf_exp.doctor", *fixed, *overrides)
        env = {**os.environ, **common, "RANK": str(i)}
        processes.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=env, cwd=folder))
    return [(process.wait(280), *process.communicate()) for process in processes]


def test_two_hosts_are_measured_against_each_other(hosts: Hosts, tmp_path: Path) -> None:
    first, second = on_both(hosts, tmp_path, "json=true", master=hosts.names[0])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == ""  # the first one speaks for all
    report = json.loads(first[1])
    found = {(check["node"], check["name"]): check for check in report["checks"]}
    for name in hosts.names:
        for what in ("port reach", "latency", "bandwidth", "clock offset", "first node's name"):
            assert found[name, what]["value"] is not None, what
        assert found[name, "bandwidth"]["value"] > 0.01 and abs(found[name, "clock offset"]["value"]) < 1000
    assert found["all", "all-reduce"]["value"] > 0 and "by gloo, 2 processes" in found["all", "all-reduce"]["found"]


def test_hosts_that_do_not_meet_are_told_in_time(hosts: Hosts, tmp_path: Path) -> None:
    hosts.cut(hosts.names[1])
    first, second = on_both(hosts, tmp_path, "timeout_s=5", master=hosts.names[0])
    assert first[0] == 1 and "did not meet" in first[1] and "meeting" in first[2]
    assert second[0] in (0, 1)
