"""What NCCL needs on a hardware profile's network, and what it says that it used: pure data, and a reader of its logs.

A launcher passes :func:`environment` to the processes of a job over several nodes; the job sets :func:`logging` before
NCCL starts, and calls :func:`verify` at its end, since NCCL falls back to plain sockets without a word.

GPUDirect-TCPX (GKE's A3 High machines, four 200 Gbit/s interfaces beside the first): the settings are those of Google's
guide "Maximize GPU network bandwidth in Standard mode clusters" and its ``gpudirect-tcpx/nccl-config-latest.yaml``
(GoogleCloudPlatform/container-engine-accelerators), as ``sky/templates/kubernetes-ray.yml.j2`` of SkyPilot 0.14 has
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlperf_exp.config import Hardware
from mlperf_exp.errors import RunFailed

TCPX = "gpudirect_tcpx"
LOG_FOLDER = "nccl"  # in the run's folder; a file a process

# The cores beside each interface's slot: of a machine a3-highgpu-8g, as in Google's and SkyPilot's settings.
_TCPX_ENVIRONMENT = {
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/local/tcpx/lib64",
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_GPUDIRECTTCPX_CTRL_DEV": "eth0",
    "NCCL_GPUDIRECTTCPX_SOCKET_IFNAME": "eth1,eth2,eth3,eth4",
    "NCCL_GPUDIRECTTCPX_TX_BINDINGS": "eth1:8-21,112-125;eth2:8-21,112-125;eth3:60-73,164-177;eth4:60-73,164-177",
    "NCCL_GPUDIRECTTCPX_RX_BINDINGS": "eth1:22-35,126-139;eth2:22-35,126-139;eth3:74-87,178-191;eth4:74-87,178-191",
    "NCCL_GPUDIRECTTCPX_PROGRAM_FLOW_STEERING_WAIT_MICROS": "500000",
    "NCCL_GPUDIRECTTCPX_UNIX_CLIENT_PREFIX": "/tmp",  # where the daemon's socket is in the job's container
    "NCCL_GPUDIRECTTCPX_FORCE_ACK": "0",
    "NCCL_CROSS_NIC": "0",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    "NCCL_NSOCKS_PERTHREAD": "4",
    "NCCL_SOCKET_NTHREADS": "1",
    "NCCL_MAX_NCHANNELS": "8",
    "NCCL_MIN_NCHANNELS": "8",
    "NCCL_DYNAMIC_CHUNK_SIZE": "524288",
    "NCCL_P2P_NET_CHUNKSIZE": "524288",
    "NCCL_P2P_PCI_CHUNKSIZE": "524288",
    "NCCL_P2P_NVL_CHUNKSIZE": "1048576",
    "NCCL_BUFFSIZE": "4194304",
    "NCCL_NET_GDR_LEVEL": "PIX",
    "NCCL_P2P_PXN_LEVEL": "0",
}


@dataclass(frozen=True, slots=True)
class Network:
    """One of the names that ``hw.network`` may have.

    ``transport`` is what NCCL's line "Using network ..." must name, as a regular expression; None: whatever it finds.
    """

    title: str
    transport: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""


NETWORKS = {
    "ethernet": Network("Ethernet"),
    "nvlink": Network("NVLink"),  # inside a node
    "infiniband": Network(
        "InfiniBand or RoCE",
        transport=r"IB(ext(_v\d+)?)?",
        remedy="Look for the adapters in the job's container (ibstat), and for NCCL_IB_DISABLE",
    ),
    TCPX: Network(
        "GPUDirect-TCPX",
        transport=r"GPUDirectTCPX(_v\d+)?",
        env=_TCPX_ENVIRONMENT,
        remedy="See that the plugin's installer runs on the nodes, and that the job has the container tcpx-daemon and "
        "the interfaces eth1 to eth4",
    ),
}


def environment(name: str | None, nodes: int) -> dict[str, str]:
    """NCCL's settings for a job over several nodes of ``hw.network``; empty where NCCL's own choice is good."""
    network = NETWORKS.get(name or "")
    return dict(network.env) if network is not None and nodes > 1 else {}


def logging(run_dir: Path) -> dict[str, str]:
    """Variables by which NCCL writes what it uses to files in the run's folder, which are read by :func:`verify`.

    To be set before NCCL starts; the folder is made.
    """
    folder = run_dir / LOG_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET,ENV",
        "NCCL_DEBUG_FILE": str(folder / "%h.%p.log"),
    }


# "host:4711:4823 [0] NCCL INFO Using network GPUDirectTCPX_v7"; newer releases put a date and a time before it
_LINE = re.compile(r"(?P<host>\S+?):(?P<pid>\d+):\d+ \[-?\d+\] (?:\S+:\d+ )?NCCL (?:INFO|WARN) (?P<text>.*)")
_USING = re.compile(r"Using network (?P<name>.+?)\s*$")
_VIA = re.compile(r"via NET/(?P<name>[^/\s]+)")


@dataclass(slots=True)
class Process:
    """One process that NCCL ran in: the networks that it named as used, and those that its channels go over."""

    host: str
    pid: int
    networks: set[str] = field(default_factory=set)


def read_log(lines: Iterable[str]) -> list[Process]:
    """What NCCL's log (NCCL_DEBUG=INFO) says that each process used; other programs' lines are passed over."""
    found: dict[tuple[str, int], Process] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        key = (match["host"], int(match["pid"]))
        process = found.setdefault(key, Process(*key))
        used = _USING.search(match["text"]) or _VIA.search(match["text"])
        if used is not None:
            process.networks.add(used["name"])
    return list(found.values())


def verify(run_dir: Path, hw: Hardware) -> tuple[str, ...]:
    """The networks that NCCL used between the nodes, by its own logs in the run's folder.

    Logs of other nodes that did not come to this folder are not missed: the two ends of a connection use the same
    network, or do not connect.

    Raises:
        RunFailed: NCCL used another network than the profile's, or did not say which.
    """
    network = NETWORKS.get(hw.network or "")
    processes = _processes(run_dir / LOG_FOLDER)
    used = sorted({name for process in processes for name in process.networks})
    if network is None or network.transport is None or hw.nodes < 2:
        return tuple(used)
    wanted = f"hw.network={hw.network} wants {network.title} between the nodes"
    leave = "require_network=false accepts any network"
    if not used:
        raise RunFailed(
            f"{wanted}, and NCCL's log in {run_dir / LOG_FOLDER} does not say what it used. See that NCCL_DEBUG=INFO "
            f"and NCCL_DEBUG_FILE reach the processes; {leave}"
        )
    others = [p for p in processes if any(not re.fullmatch(network.transport, name) for name in p.networks)]
    if others:
        names = ", ".join(sorted({n for p in others for n in p.networks if not re.fullmatch(network.transport, n)}))
        hosts = ", ".join(sorted({process.host for process in others}))
        raise RunFailed(
            f"{wanted}, but NCCL used {names} in {len(others)} of {len(processes)} processes (on {hosts}), as its log "
            f"in {run_dir / LOG_FOLDER} says. {network.remedy}; {leave}"
        )
    return tuple(used)


def _processes(folder: Path) -> list[Process]:
    found: list[Process] = []
    for path in sorted(folder.glob("*.log")) if folder.is_dir() else []:
        with path.open(encoding="utf-8", errors="replace") as lines:
            found += read_log(lines)
    return found
