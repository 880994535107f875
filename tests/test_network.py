"""What NCCL says that it used, from logs of real runs, against what a hardware profile wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlperf_exp.config import Backend, Config, Hardware, OpenaiBackend
from mlperf_exp.errors import RunFailed
from mlperf_exp.messages import Measurement, Plan
from mlperf_exp.network import LOG_FOLDER, NETWORKS, environment, logging, read_log, verify
from mlperf_exp.run import on_its_network

# Lines that NCCL 2.18 to 2.27 wrote on real machines, shortened; the plugin's name is that of its source (net_tcpx.h).
TCPX = """\
a3-0:1042:1042 [0] NCCL INFO Bootstrap : Using eth0:10.108.2.5<0>
a3-0:1042:1042 [0] NCCL INFO NET/Plugin : Plugin load (libnccl-net.so) returned 2 : libnccl-net.so
a3-0:1042:1130 [0] NCCL INFO NET/GPUDirectTCPX ver. 3.1.8.
a3-0:1042:1130 [0] NCCL INFO NET/GPUDirectTCPX : GPUDirectTCPX enable: 1
a3-0:1042:1130 [0] NCCL INFO Using network GPUDirectTCPX_v7
a3-0:1043:1131 [1] NCCL INFO Using network GPUDirectTCPX_v7
"""
SOCKET = """\
TUF-Node02:556:556 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to eth0
TUF-Node02:556:556 [0] NCCL INFO Bootstrap : Using eth0:192.168.29.197<0>
TUF-Node02:556:556 [0] NCCL INFO NET/Plugin: No plugin found (libnccl-net.so)
TUF-Node02:556:556 [0] NCCL INFO NET/Plugin: Using internal network plugin.
NCCL version 2.21.5+cuda12.4
TUF-Node02:556:574 [0] NCCL INFO NET/Socket : Using [0]eth0:192.168.29.197<0>
TUF-Node02:556:574 [0] NCCL INFO Using network Socket
"""
DATED = """\
[2026-09-06 18:39:11] macpro2019-01:254561:254699 [0] NCCL INFO Initialized NET plugin Socket
[2026-09-06 18:39:11] macpro2019-01:254561:254699 [0] NCCL INFO Using network Socket
"""
INFINIBAND = """\
leader-h2nng:523:564 [0] NCCL INFO NCCL_NET_GDR_LEVEL set by environment to SYS
leader-h2nng:523:564 [0] NCCL INFO Channel 00/0 : 9[1] -> 0[0] [receive] via NET/IB/0/GDRDMA
"""
# Loaded, and then not used: what a daemon that did not come up leads to.
FALLBACK = TCPX.replace(
    "1043:1131 [1] NCCL INFO Using network GPUDirectTCPX_v7", "1043:1131 [1] NCCL INFO Using network Socket"
)


def profile(network: str | None, nodes: int = 2) -> Hardware:
    return Hardware(name="two", nodes=nodes, gpus_per_node=8, memory_gib=80, network=network, source="a test")


def written(folder: Path, *logs: str) -> Path:
    logging(folder)
    for i, text in enumerate(logs):
        (folder / LOG_FOLDER / f"host.{i}.log").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        (TCPX, [{"GPUDirectTCPX_v7"}, {"GPUDirectTCPX_v7"}]),
        (SOCKET, [{"Socket"}]),
        (DATED, [{"Socket"}]),
        (INFINIBAND, [{"IB"}]),
        ("x:1:2 [0] NCCL INFO Using network AWS Libfabric\n", [{"AWS Libfabric"}]),
        ("NCCL version 2.21.5+cuda12.4\nUsing network Socket\n", []),
        ("", []),
    ],
)
def test_a_log_names_what_each_process_used(text: str, networks: list[set[str]]) -> None:
    assert [process.networks for process in read_log(text.splitlines())] == networks


def test_the_profile_s_network_is_accepted(tmp_path: Path) -> None:
    assert verify(written(tmp_path, TCPX), profile("gpudirect_tcpx")) == ("GPUDirectTCPX_v7",)
    assert verify(written(tmp_path / "ib", INFINIBAND), profile("infiniband")) == ("IB",)


@pytest.mark.parametrize("text", [SOCKET, DATED, INFINIBAND, FALLBACK, "h:1:2 [0] NCCL INFO Using network FasTrak\n"])
def test_another_network_fails_the_run_and_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        RunFailed, match=r"wants GPUDirect-TCPX .* but NCCL used (Socket|IB|FasTrak) in 1 of \d"
    ) as error:
        verify(written(tmp_path, text), profile("gpudirect_tcpx"))
    assert "require_network=false" in str(error.value)


def test_one_process_of_many_that_fell_back_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"Socket in 1 of 3 processes \(on TUF-Node02\)"):
        verify(written(tmp_path, TCPX, SOCKET), profile("gpudirect_tcpx"))


@pytest.mark.parametrize("logs", [(), ("",), ("x:1:2 [0] NCCL INFO NET/GPUDirectTCPX ver. 3.1.8.\n",)])
def test_a_log_that_says_nothing_fails_the_run(tmp_path: Path, logs: tuple[str, ...]) -> None:
    with pytest.raises(RunFailed, match="does not say what it used"):
        verify(written(tmp_path, *logs), profile("gpudirect_tcpx"))


@pytest.mark.parametrize("hw", [profile("gpudirect_tcpx", nodes=1), profile("ethernet"), profile(None)])
def test_nothing_is_asked_of_one_node_or_of_a_plain_network(tmp_path: Path, hw: Hardware) -> None:
    assert verify(written(tmp_path, SOCKET), hw) == ("Socket",)
    assert environment(hw.network, hw.nodes) == {}


def test_tcpx_settings_name_five_interfaces_and_are_all_text() -> None:
    settings = environment("gpudirect_tcpx", 2)
    assert settings["NCCL_GPUDIRECTTCPX_SOCKET_IFNAME"] == "eth1,eth2,eth3,eth4"
    assert settings["NCCL_SOCKET_IFNAME"] == settings["NCCL_GPUDIRECTTCPX_CTRL_DEV"] == "eth0"
    for binding in ("TX", "RX"):
        bound = settings[f"NCCL_GPUDIRECTTCPX_{binding}_BINDINGS"].split(";")
        assert [each.split(":")[0] for each in bound] == ["eth1", "eth2", "eth3", "eth4"]
    assert all(isinstance(value, str) for value in settings.values())
    assert set(NETWORKS) >= {"ethernet", "nvlink", "gpudirect_tcpx"}


@pytest.mark.parametrize(
    ("backend", "required", "log", "failed"),
    [
        (Backend("lightning"), True, SOCKET, True),
        (Backend("lightning"), True, TCPX, False),
        (Backend("lightning"), False, SOCKET, False),
        (OpenaiBackend(urls=["http://a:1"]), True, SOCKET, False),
    ],
)
def test_a_run_over_several_nodes_fails_on_another_network(
    tmp_path: Path, backend: Backend, required: bool, log: str, failed: bool
) -> None:
    config = Config(hw=profile("gpudirect_tcpx"), backend=backend, require_network=required)
    done = on_its_network(Plan(config, written(tmp_path, log), {}, ()), Measurement({"samples_per_second": 1.0}, {}))
    assert ("GPUDirect-TCPX" in (done.failure or "")) is failed
    assert done.metrics == {"samples_per_second": 1.0}
