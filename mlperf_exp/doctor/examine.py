"""Everything that the doctor looks at, in order, on this node or on all nodes of a job."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlperf_exp import network
from mlperf_exp.config import DoctorConfig, Hardware
from mlperf_exp.doctor import gpu, host
from mlperf_exp.doctor.check import Check, Status, graded
from mlperf_exp.doctor.collective import all_reduce, set_environment
from mlperf_exp.doctor.link import Link, measure, serving
from mlperf_exp.doctor.peers import Peers, Place, address, met
from mlperf_exp.errors import RunFailed


def examine(config: DoctorConfig, run_dir: Path) -> list[Check] | None:
    """All checks of all nodes, on the first process of the job; None on the others."""
    place = Place.here()
    set_environment(network.environment(config.hw.network, place.nodes))
    if place.world > 1:
        set_environment(network.logging(run_dir))
    own = [replace(check, node=socket.gethostname()) for check in _alone(config, place)] if place.leads else []
    try:
        with met(place, config.timeout_s) as peers:
            found = own + _together(config, peers, run_dir)
            every = [check for checks in peers.share(found) for check in checks]
    except (RuntimeError, OSError) as error:
        every = [*own, _not_met(place, error)]
    return every if place.rank == 0 else None


def _alone(config: DoctorConfig, place: Place) -> list[Check]:
    checks = [*gpu.checks(config.hw), *host.checks(config)]
    if place.nodes > 1:
        checks.append(host.look_up(place.master, "first node's name"))
    if place.nodes != config.hw.nodes:
        remedy = "Send it through a launcher: python -m mlperf_exp.doctor hydra/launcher=kubernetes hw=..."
        found = f"{place.nodes} looked at, {config.hw.name} has {config.hw.nodes}"
        checks.append(Check("nodes", Status.warn, found, remedy, place.nodes))
    return checks


def _not_met(place: Place, error: Exception) -> Check:
    return Check(
        "meeting",
        Status.fail,
        f"{place.world} processes did not meet at {place.master}:{place.port}: {' '.join(str(error).split())[:300]}",
        "See that all nodes run, find the first one by name, and reach its ports (network policies, firewalls)",
        node=socket.gethostname(),
    )


def _together(config: DoctorConfig, peers: Peers, run_dir: Path) -> list[Check]:
    place, checks = peers.place, []
    if place.nodes > 1:
        checks += _links(config, peers)
    if place.world > 1:
        checks += _all_reduce(config, peers, run_dir)
    return checks


def _links(config: DoctorConfig, peers: Peers) -> list[Check]:
    """Each node measures towards the next one, one after the other, so that they do not disturb each other."""
    place = peers.place
    with serving() as server:
        addresses = peers.leaders((socket.gethostname(), address(place), server.port))
        checks: list[Check] = []
        for i in range(place.nodes):
            if place.leads and place.node == i:
                name, where, port = addresses[(i + 1) % place.nodes]
                try:
                    checks = link_checks(config.hw, name, measure(where, port, config.seconds))
                except OSError as error:
                    remedy = "Let the nodes reach each other's ports: see network policies, firewalls, the CNI's state"
                    checks = [Check("port reach", Status.fail, f"{name} ({where}:{port}): {error}", remedy)]
            peers.wait()
    return [replace(check, node=socket.gethostname()) for check in checks]


def link_checks(hw: Hardware, name: str, link: Link) -> list[Check]:
    """What a measured link is worth to the profile."""
    overlay = "Look at the CNI: encapsulation (prefer none), MTU, eBPF; compare with the same on the hosts' network"
    latency = graded(
        "latency", link.latency_ms, f"{link.latency_ms:.3f} ms there and back to {name}, p99 {link.latency_p99_ms:.3f}",
        overlay, good=1.0, bearable=10.0, more_is_better=False,
    )  # fmt: skip
    clock = graded(
        "clock offset", abs(link.offset_ms), f"{link.offset_ms:+.2f} ms to {name}",
        "Run chrony or another NTP client on the nodes", good=20.0, bearable=1000.0, more_is_better=False,
    )  # fmt: skip
    reach = Check("port reach", Status.passed, f"{name} in {link.connect_ms:.2f} ms", value=link.connect_ms)
    return [reach, latency, _bandwidth(hw, name, link.gbit_s, overlay), clock]


def _bandwidth(hw: Hardware, name: str, gbit_s: float, remedy: str) -> Check:
    text = f"{gbit_s:.1f} Gbit/s to {name}"
    # GPUDirect-TCPX has interfaces of its own, beside the one that pods speak over.
    if hw.network_gbit_s is None or hw.network == network.TCPX:
        return Check("bandwidth", Status.passed, f"{text}; the profile names no rate for it", value=gbit_s)
    text += f" of {hw.network_gbit_s:g}"
    return graded("bandwidth", gbit_s, text, remedy, good=0.6 * hw.network_gbit_s, bearable=0.2 * hw.network_gbit_s)


def _all_reduce(config: DoctorConfig, peers: Peers, run_dir: Path) -> list[Check]:
    try:
        found = all_reduce(peers, config.seconds, config.timeout_s)
    except RuntimeError as error:
        remedy = "See NCCL's log in the run's folder; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME may name the interface"
        return [Check("all-reduce", Status.fail, " ".join(str(error).split())[:300], remedy)]
    if peers.place.rank != 0:
        return []
    text = f"{found.bus_gb_s:.2f} GB/s by {found.backend}, {peers.place.world} processes, {found.mib} MiB"
    rate = config.hw.network_gbit_s
    if rate is None or peers.place.nodes < 2 or found.backend == "gloo":
        note = "; the profile names no rate for it" if rate is None and peers.place.nodes > 1 else ""
        checks = [Check("all-reduce", Status.passed, text + note, value=found.bus_gb_s)]
    else:
        remedy = "See which network NCCL uses (the next line), its settings, and the link's own bandwidth"
        full = rate / 8
        text += f" of {full:g}"
        checks = [graded("all-reduce", found.bus_gb_s, text, remedy, good=0.6 * full, bearable=0.2 * full)]
    if found.backend == "nccl" and peers.place.nodes > 1:
        checks.append(_used(config, run_dir))
    return [replace(check, node="all") for check in checks]


def _used(config: DoctorConfig, run_dir: Path) -> Check:
    try:
        used = network.verify(run_dir, config.hw)
    except RunFailed as error:
        status = Status.fail if config.require_network else Status.warn
        return Check("NCCL's network", status, str(error), "See docs/gke-h100.md for what GPUDirect-TCPX needs")
    return Check("NCCL's network", Status.passed, ", ".join(used) or "not told")


def names(checks: Sequence[Check]) -> str:
    """The checks' names, for one line."""
    return ", ".join(f"{check.name} ({check.node})" if check.node else check.name for check in checks)
