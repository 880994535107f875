"""Decoding ahead of the training step: in a thread, and on a GPU on a CUDA stream of its own.

The thread waits for its stream before it hands a batch over, so that the step finds whole batches and waits for
nothing but the queue. It must wait, too: nvJPEG writes on a third stream, into memory that the allocator takes for
free on this one.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from mlperf_exp.train.feed import Batch, Files, Source
from mlperf_exp.train.images import Images
from mlperf_exp.train.job import Job
from mlperf_exp.train.loaders.coded import CodedBatch, CodedImages, together
from mlperf_exp.train.loaders.readers import share

Decode = Callable[[Iterator[CodedBatch]], Iterator[Batch]]

_DEPTH = 2  # batches that wait for the step
_LOOK_S = 0.1  # between two looks at whether a full queue is still wanted
_PATIENCE_S = 10.0  # with a thread that is to end


def data(job: Job, rank: int, training: Images, validation: Images, decode: Callable[[], Decode]) -> tuple[Source, Any]:
    """See :class:`.Loading`; ``decode`` makes what turns files into batches on the job's device, one for each part."""
    files = Files(job, rank, CodedImages(training), together)
    rest = share(job, rank, validation, CodedImages(validation), together)
    return _Training(job, files, decode()), _Validation(job, rest, decode())


class _Training:
    """A :class:`Source` of decoded batches."""

    def __init__(self, job: Job, files: Files, decode: Decode) -> None:
        self._job, self._files, self._decode = job, files, decode

    def open(self, first_step: int) -> Iterator[Batch]:
        """See :class:`Source`."""
        return ahead(lambda: self._decode(self._files.open(first_step)), self._job.device)


class _Validation:
    """Decoded batches of the validation set, anew for each evaluation."""

    def __init__(self, job: Job, files: DataLoader[Any], decode: Decode) -> None:
        self._job, self._files, self._decode = job, files, decode

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Batch]:
        return ahead(lambda: self._decode(iter(self._files)), self._job.device)


class _End:
    """No more batches, and why."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(make: Callable[[], Iterator[Batch]], device: str) -> Iterator[Batch]:
    """The batches of ``make()``, computed in a thread; its exceptions are raised here, in their place.

    ``make`` is called in the caller's thread, which worker processes are to be children of.
    """
    batches = make()
    found: queue.Queue[Any] = queue.Queue(_DEPTH)
    unwanted = threading.Event()
    stream = torch.cuda.Stream() if device == "cuda" else None
    thread = threading.Thread(target=_work, args=(batches, found, unwanted, stream), name="decode", daemon=True)
    thread.start()
    try:
        while not isinstance(batch := found.get(), _End):
            if stream is not None:
                for tensor in batch:
                    tensor.record_stream(torch.cuda.current_stream())
            yield batch
        if batch.error is not None:
            raise batch.error
    finally:
        unwanted.set()
        thread.join(_PATIENCE_S)


def _work(batches: Iterator[Batch], found: queue.Queue[Any], unwanted: threading.Event, stream: Any) -> None:
    """The thread."""
    end = _End()
    try:
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            for batch in batches:
                if stream is not None:
                    stream.synchronize()
                if not _put(found, batch, unwanted):
                    return
    except BaseException as error:
        end = _End(error)
    _put(found, end, unwanted)


def _put(found: queue.Queue[Any], item: Any, unwanted: threading.Event) -> bool:
    """Whether it was put: nobody may be there any more to take it."""
    while not unwanted.is_set():
        with contextlib.suppress(queue.Full):
            found.put(item, timeout=_LOOK_S)
            return True
    return False
