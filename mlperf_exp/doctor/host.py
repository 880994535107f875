"""What a node itself is like: disk, shared memory, processors, names, Python's byte code."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlperf_exp.config import DoctorConfig, Hardware
from mlperf_exp.doctor.check import Check, Status, graded

_GIB = 2**30


def checks(config: DoctorConfig) -> list[Check]:
    """Everything that a node can see by itself."""
    disk = _disk(Path(config.folder), config.disk_mib)
    return [
        _memory(config.hw),
        _shared_memory(config.hw),
        *disk,
        own_name(),
        byte_code(("torch", "transformers", "vllm")),
    ]


def _memory(hw: Hardware) -> Check:
    import psutil

    free, cores = psutil.virtual_memory().available / _GIB, len(os.sched_getaffinity(0))
    text = f"{cores} processors, {free:.1f} GiB of memory free"
    short = hw.host_memory_gib is not None and psutil.virtual_memory().total / _GIB < 0.9 * hw.host_memory_gib
    few = hw.cpus_per_node is not None and cores < hw.cpus_per_node
    if short or few:
        wants = f"{hw.cpus_per_node or 'any number of'} processors and {hw.host_memory_gib or 'any'} GiB"
        return Check("processors, memory", Status.warn, text, f"{hw.name} says {wants}: ask for more of the node", free)
    return Check("processors, memory", Status.passed, text, value=free)


def _shared_memory(hw: Hardware) -> Check:
    try:
        size = shutil.disk_usage("/dev/shm").total / _GIB
    except OSError as error:
        return Check("shared memory", Status.warn, str(error), "Mount a tmpfs on /dev/shm")
    remedy = "Give the container more of /dev/shm (hydra.launcher.backend.shared_memory_gib, docker --shm-size)"
    wanted = 1.0 * max(1, hw.gpus_per_node)  # NCCL and PyTorch's loaders keep buffers for each GPU there
    return graded("shared memory", size, f"{size:.3g} GiB in /dev/shm", remedy, good=wanted, bearable=0.06)


def _disk(folder: Path, mib: int) -> list[Check]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / _GIB
        speed = write_speed(folder, mib)
    except OSError as error:
        remedy = "Make room, or give another place: folder=FOLDER"
        return [Check("disk", Status.fail, f"{folder}: {error.strerror}", remedy)]
    space = graded(
        "disk space", free, f"{free:.1f} GiB free in {folder.absolute()}", "Make room, or give another: folder=FOLDER",
        good=50.0, bearable=2.0,
    )  # fmt: skip
    pace = graded(
        "disk speed", speed, f"{speed:,.0f} MB/s written and synced",
        "Slow for weights and data: use a local disk, or a faster volume", good=100.0, bearable=10.0,
    )  # fmt: skip
    return [space, pace]


def write_speed(folder: Path, mib: int) -> float:
    """MB/s at which ``mib`` MiB reach the disk, the sync included.

    Raises:
        OSError: the disk is full or read-only.
    """
    block = os.urandom(1 << 20)  # some file systems store zeros for nothing
    handle, name = tempfile.mkstemp(dir=folder, prefix=".doctor.")
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(max(1, mib)):
                file.write(block)
            os.fsync(file.fileno())
            return max(1, mib) * (1 << 20) / 1e6 / (time.perf_counter() - began)
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def byte_code(packages: Sequence[str]) -> Check:
    """Whether Python keeps what it compiles of these large packages: else each engine and rank compiles them anew."""
    specs = {name: importlib.util.find_spec(name) for name in packages}
    files = {name: Path(spec.origin) for name, spec in specs.items() if spec and spec.origin}
    missing = {name: kept for name, file in files.items() if not (kept := _compiled(file)).exists()}
    lost = [name for name, kept in missing.items() if sys.dont_write_bytecode or not _may_write(kept)]
    if not lost:
        return Check("byte code", Status.passed, f"kept of {', '.join(files) or 'nothing: no large package is here'}")
    remedy = (
        "Unset PYTHONDONTWRITEBYTECODE and set PYTHONPYCACHEPREFIX to a folder that stays and can be written, or run "
        f"python -m compileall -q {files[lost[0]].parent.parent} once"
    )
    return Check(
        "byte code",
        Status.warn,
        f"{', '.join(lost)} compiled anew by each process: starts take three times as long",
        remedy,
    )


def _compiled(file: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(file)))


def _may_write(file: Path) -> bool:
    """Whether Python could make this file and the folders it lies in."""
    folder = next(parent for parent in file.parents if parent.exists())
    return os.access(folder, os.W_OK)


def own_name() -> Check:
    """Whether this node's own name is found, and soon: PyTorch looks it up when nodes meet."""
    return look_up(socket.gethostname(), "own name")


def look_up(name: str, title: str) -> Check:
    """Find a name's address, and the address's name; both are asked for when nodes meet."""
    remedy = "Add the nodes to /etc/hosts, or mend DNS; for look-ups that hang, set 'hosts: files dns' in nsswitch.conf"
    began = time.perf_counter()
    try:
        address = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)[0][4][0]
    except OSError as error:
        return Check(title, Status.fail, f"{name} is not found: {error}", remedy)
    with contextlib.suppress(OSError):
        socket.gethostbyaddr(str(address))
    seconds = time.perf_counter() - began
    text = f"{name} is {address}, by name and back in {seconds * 1000:.0f} ms"
    return graded(title, seconds, text, remedy, good=1.0, bearable=20.0, more_is_better=False)
