"""Images decoded and resized by NVIDIA DALI, an optional package: on the GPU by nvJPEG, else on the processor.

DALI gets files and views in our order; it draws nothing and orders nothing, so that a run goes on at any step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlperf_exp.errors import RunFailed
from mlperf_exp.train.feed import Batch, Source
from mlperf_exp.train.images import Images, UnreadableImage, read
from mlperf_exp.train.job import Job
from mlperf_exp.train.loaders import ahead
from mlperf_exp.train.loaders.coded import CodedBatch


def data(job: Job, rank: int, training: Images, validation: Images) -> tuple[Source, Any]:
    """See :class:`.Loading`."""
    return ahead.data(job, rank, training, validation, lambda: Decoder(job, training.size))


class Decoder:
    """Batches of files -> batches of images of ``size`` pixels on the job's device.

    The pipeline is built when the first batches come, in their thread, and kept for the next evaluation.
    """

    def __init__(self, job: Job, size: int) -> None:
        self._job, self._size = job, size
        self._feed = _Feed()
        self._pipeline: Any = None

    def __call__(self, batches: Iterator[CodedBatch]) -> Iterator[Batch]:
        """See :data:`.ahead.Decode`.

        Raises:
            UnreadableImage: neither DALI nor Pillow can decode an image.
            RunFailed: DALI alone cannot.
        """
        self._feed.batches = batches
        self._pipeline = self._pipeline or self._built()
        while True:
            try:
                (images,) = self._pipeline.run()
            except StopIteration:
                if self._feed.failure is not None:
                    raise self._feed.failure from None
                self._pipeline.reset()
                return
            except RuntimeError as error:
                raise _undecoded([path for batch in self._feed.underway for path in batch.paths], error) from error
            copy = torch.from_dlpack(images.as_tensor()).clone()  # DALI takes its memory back for the next batch
            yield copy, self._feed.underway.popleft().labels.to(self._job.device)

    def _built(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._job.device == "cuda"
        pipeline = Pipeline(
            batch_size=self._job.micro_batch,
            num_threads=max(1, self._job.workers),
            device_id=torch.cuda.current_device() if on_gpu else None,
        )
        with pipeline:
            files, starts, shapes, sizes, corners, flips = fn.external_source(self._feed, num_outputs=6)
            images = fn.decoders.image_slice(
                files,
                start=starts,
                shape=shapes,
                axes=(0, 1),
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
            )
            images = fn.resize(images, size=sizes, interp_type=types.INTERP_LINEAR, antialias=True)
            images = fn.slice(images, start=corners, shape=(self._size, self._size), axes=(0, 1))
            images = fn.transpose(fn.flip(images, horizontal=flips), perm=[2, 0, 1])
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


class _Feed:
    """What DALI asks for its next batch.

    Apart from the pipeline, so that the two are no circle: a pipeline that is left to the garbage collector may meet
    it in a forked process, where it would wait for threads that are not there.
    """

    def __init__(self) -> None:
        self.batches: Iterator[CodedBatch] = iter(())
        self.underway: deque[CodedBatch] = deque()  # in DALI's hands
        self.failure: Exception | None = None  # of the readers

    def __call__(self) -> tuple[Any, ...]:
        """The next batch as DALI takes it; StopIteration ends its run, after the batches before."""
        try:
            batch = next(self.batches)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise StopIteration from None
        self.underway.append(batch)
        pairs = np.array([view[:8] for view in batch.views], np.int32).reshape(-1, 4, 2)
        starts, shapes, sizes, corners = pairs.swapaxes(0, 1).copy()  # in one piece each
        flips = np.array([view.flip for view in batch.views], np.int32)
        return [file.numpy() for file in batch.files()], starts, shapes, sizes.astype(np.float32), corners, flips


def _undecoded(paths: list[str], error: RuntimeError) -> Exception:
    """The error for a batch that DALI gave up."""
    for path in paths:
        try:
            read(Path(path))
        except UnreadableImage as found:
            return found
    among = f"{len(paths)} images, {', '.join(paths[:1])} among them"
    return RunFailed(f"DALI could not decode one of {among}: {' '.join(str(error).split())[:300]}")
