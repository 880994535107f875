"""Runs a program's batches: on a GPU several at a time, with copies and CUDA graphs; on a processor one at a time.

On a GPU a batch is copied in on one stream, computed on a second and copied out on a third, so that three batches are
on their way at once. A graph is recorded for each size and slot; all graphs share one pool of memory, because the
stream they run on lets only one of them run at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlperf_exp.errors import RunFailed
from mlperf_exp.sut.forward.program import Buffer, Program

log = logging.getLogger(__name__)
GIB = 1 << 30


@dataclass(slots=True)
class Slot:
    """The place of one batch on its way: arrays on both sides, and where it stands."""

    host_in: dict[int, list[Any]] = field(default_factory=dict)  # by size
    host_out: dict[int, Any] = field(default_factory=dict)
    device_in: dict[int, list[Any]] = field(default_factory=dict)
    targets: dict[int, Sequence[Any]] = field(default_factory=dict)  # of what is copied in
    device_out: dict[int, Any] = field(default_factory=dict)
    graphs: dict[int, Any] = field(default_factory=dict)
    copied: Any = None
    computed: Any = None
    done: Any = None


class Executor:
    """A program on a device.

    ``seconds`` maps each size that can run to the time that one batch of it takes, measured at the start. ``warnings``
    says which sizes did not fit.
    """

    def __init__(self, program: Program, device: str, slots: int, graphs: bool, warmup: int) -> None:
        self.program, self.device = program, torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.slots = [Slot() for _ in range(slots)]
        self.seconds: dict[int, float] = {}
        self.warnings: list[str] = []
        self._graphs, self._warmup = graphs and self.cuda, warmup
        self._pool: Any = None
        if self.cuda:
            self._in, self._compute, self._out = (torch.cuda.Stream(self.device) for _ in range(3))

    def start(self, sizes: Sequence[int], samples: Sequence[int]) -> None:
        """Warm up with these sizes, the largest first; ``samples`` are loaded, and stand in for what will be asked.

        A size for which the memory does not suffice is halved, until one fits.

        Raises:
            RunFailed: none fits.
        """
        self.program.prepare(self.device)
        waiting = sorted(set(sizes), reverse=True)
        while waiting:
            size = waiting.pop(0)
            try:
                self._allocate(size)
                self.seconds[size] = self._try(size, np.asarray(samples, dtype=np.int64))
            except torch.OutOfMemoryError:
                self._forget(size)
                smaller = size // 2
                if not smaller:
                    raise RunFailed("not even a batch of one fits into the device's memory") from None
                self.warnings.append(f"A batch of {size:,} does not fit into the memory; {smaller:,} is tried.")
                log.warning(self.warnings[-1])
                if not any(other >= smaller for other in self.seconds):
                    waiting = sorted({smaller, *waiting}, reverse=True)
        self.seconds = dict(sorted(self.seconds.items()))

    def launch(self, slot: Slot, size: int, samples: NDArray[np.int64]) -> None:
        """Begin a batch; returns before it is done on a GPU, after it is on a processor."""
        host_in = slot.host_in[size]
        if not self.cuda:
            self.program.fill(samples, host_in)
            with torch.inference_mode():
                slot.host_out[size].copy_(self.program.forward(*host_in))
            return
        if len(self.slots) == 1:  # nothing to overlap: one stream, fewer calls
            with torch.cuda.stream(self._compute):
                self.program.send(samples, host_in, slot.targets[size])
                self._run(slot, size)
                slot.host_out[size].copy_(slot.device_out[size], non_blocking=True)
                slot.done.record(self._compute)
            return
        with torch.cuda.stream(self._in):
            self.program.send(samples, host_in, slot.targets[size])
            slot.copied.record(self._in)
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.copied)
            self._run(slot, size)
            slot.computed.record(self._compute)
        with torch.cuda.stream(self._out):
            self._out.wait_event(slot.computed)
            slot.host_out[size].copy_(slot.device_out[size], non_blocking=True)
            slot.done.record(self._out)

    def _run(self, slot: Slot, size: int) -> None:
        if size in slot.graphs:
            slot.graphs[size].replay()
        else:
            self._forward(slot, size)

    def wait(self, slot: Slot, size: int, samples: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Wait for the batch; its answers, which hold until the slot is launched again."""
        if self.cuda:
            slot.done.synchronize()  # lets other threads run
        return self.program.answers(samples, slot.host_out[size].numpy())

    def warm(self, samples: NDArray[np.int64]) -> None:
        """Run the smallest size once in the caller's thread: the processor's threads belong to it."""
        size = next(iter(self.seconds))
        if int(self.program.lengths(samples[:1])[0]) <= size:
            self.launch(self.slots[0], size, samples[:1])
            self.wait(self.slots[0], size, samples[:1])

    def peak_memory_gib(self) -> float:
        """The most memory in use so far: PyTorch's on a GPU, the process's on a processor."""
        if self.cuda:
            return float(torch.cuda.max_memory_allocated(self.device)) / GIB
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB

    def close(self) -> None:
        """Let go of the device's memory."""
        self.slots.clear()
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _allocate(self, size: int) -> None:
        """Give each slot arrays for ``size``: beginnings of a larger size's where there is one."""
        for slot in self.slots:
            larger = next(iter(slot.host_in), None)
            inputs, output = self.program.inputs(size), self.program.output(size)
            if larger is not None and larger > size:
                slot.host_in[size] = _beginnings(slot.host_in[larger], inputs)
                (slot.host_out[size],) = _beginnings([slot.host_out[larger]], [output])
            else:
                slot.host_in[size] = [self._host(buffer) for buffer in inputs]
                slot.host_out[size] = self._host(output)
            if not self.cuda:
                continue
            if larger is not None and larger > size:
                slot.device_in[size] = _beginnings(slot.device_in[larger], inputs)
                (slot.device_out[size],) = _beginnings([slot.device_out[larger]], [output])
            else:
                slot.device_in[size] = [self._there(buffer) for buffer in inputs]
                slot.device_out[size] = self._there(output)
                slot.copied, slot.computed = torch.cuda.Event(), torch.cuda.Event()
                slot.done = torch.cuda.Event(blocking=len(self.slots) > 1)  # alone, spinning wakes up sooner
            slot.targets[size] = self.program.targets(slot.device_in[size])

    def _host(self, buffer: Buffer) -> Any:
        return torch.zeros(buffer.shape, dtype=getattr(torch, buffer.dtype), pin_memory=self.cuda)

    def _there(self, buffer: Buffer) -> Any:
        return torch.zeros(buffer.shape, dtype=getattr(torch, buffer.dtype), device=self.device)

    def _forget(self, size: int) -> None:
        for slot in self.slots:
            for arrays in (
                slot.host_in, slot.host_out, slot.device_in, slot.targets, slot.device_out, slot.graphs,
            ):  # fmt: skip
                arrays.pop(size, None)
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _try(self, size: int, samples: NDArray[np.int64]) -> float:
        """Record the size's graphs and run some batches; returns the seconds that one takes."""
        samples = _batch(self.program, size, samples)
        if self.cuda:
            for slot in self.slots:
                self._record(slot, size, samples)
        times = []
        for turn in range(self._warmup + 1):
            slot = self.slots[turn % len(self.slots)]
            if self.cuda:
                torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            self.launch(slot, size, samples)
            self.wait(slot, size, samples)
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def _record(self, slot: Slot, size: int, samples: NDArray[np.int64]) -> None:
        self._compute.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._compute):
            self.program.send(samples, slot.host_in[size], slot.targets[size])
            for _ in range(2 if slot is self.slots[0] else 1):  # compiles, and lets cuDNN choose its kernels
                self._forward(slot, size)
        torch.cuda.synchronize(self.device)
        if not self._graphs:
            return
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._compute), torch.inference_mode():
            slot.device_out[size].copy_(self.program.forward(*slot.device_in[size]))
        slot.graphs[size] = graph

    def _forward(self, slot: Slot, size: int) -> None:
        with torch.inference_mode():
            slot.device_out[size].copy_(self.program.forward(*slot.device_in[size]))


def _batch(program: Program, size: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """A full batch out of ``samples``, repeated as often as it takes; at least one sample, even of more units."""
    lengths = program.lengths(samples)
    shortest = samples[np.argsort(lengths, kind="stable")]
    mean = max(1, int(lengths.mean()))
    wanted = np.resize(samples, max(1, min(program.most(size), size // mean + 1)))
    count = int(np.searchsorted(np.cumsum(program.lengths(wanted)), size, side="right"))
    return wanted[:count] if count else shortest[:1]


def _beginnings(arrays: Sequence[Any], buffers: Sequence[Buffer]) -> list[Any]:
    return [array[: buffer.shape[0]] for array, buffer in zip(arrays, buffers, strict=True)]
