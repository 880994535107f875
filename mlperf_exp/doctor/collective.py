"""The bandwidth of an all-reduce over all processes of the job: by NCCL where each has a GPU, else by gloo."""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import dataclass

from mlperf_exp.doctor.peers import Peers

_GLOO_BYTES, _NCCL_BYTES = 32 << 20, 1 << 30
_MOST = 50  # repetitions


@dataclass(frozen=True, slots=True)
class AllReduce:
    """``bus_gb_s``: what each process's link carries, 2 (n - 1) / n times the tensor's bytes a second (nccl-tests)."""

    backend: str
    mib: int
    bus_gb_s: float


def all_reduce(peers: Peers, seconds: float, timeout_s: float) -> AllReduce:
    """Measure it; all processes must call it.

    Raises:
        RuntimeError: the processes cannot speak to each other by that backend.
    """
    import torch
    import torch.distributed as dist

    place = peers.place
    nccl = all(peers.share(torch.cuda.is_available() and torch.cuda.device_count() > place.local_rank))
    size = _NCCL_BYTES if nccl else _GLOO_BYTES
    device = torch.device("cuda", place.local_rank) if nccl else torch.device("cpu")
    if nccl:
        torch.cuda.set_device(device)
    backend = "nccl" if nccl else "gloo"
    group = dist.new_group(backend=backend, timeout=datetime.timedelta(seconds=timeout_s))
    tensor = torch.ones(size // 4, dtype=torch.float32, device=device)

    def once() -> float:
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        if nccl:
            torch.cuda.synchronize(device)
        took: float = max(peers.share(time.perf_counter() - began))
        return took

    once()  # connections are made
    first = once()
    count = max(2, min(_MOST, int(seconds / max(first, 1e-6))))
    tensor.fill_(1.0)
    times = sorted(once() for _ in range(count))
    wanted = float(place.world) ** count
    if count * place.world.bit_length() < 100 and not bool((tensor == wanted).all()):
        raise RuntimeError(f"an all-reduce by {backend} gave a wrong sum")
    median = times[len(times) // 2]
    bus = 2 * (place.world - 1) / place.world * size / median / 1e9
    dist.destroy_process_group(group)
    return AllReduce(backend, size >> 20, bus)


def set_environment(variables: dict[str, str]) -> None:
    """NCCL's settings, before it starts; what the user has set stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
