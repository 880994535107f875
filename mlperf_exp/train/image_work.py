"""Image classification in a rank: DDP, folders of images, the log's keys of ResNet-50; see :class:`.work.Work`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from mlperf_exp.train import feed, folders, images, loaders
from mlperf_exp.train.classifier import Classifier
from mlperf_exp.train.feed import Batch, Source
from mlperf_exp.train.job import ImageTask, Job
from mlperf_exp.train.learner import Learner
from mlperf_exp.train.torchrun import TIMEOUT, Torchrun, backend

METRIC = "top1"


def learner(job: Job) -> Learner:
    """See :class:`.work.Work`."""
    from mlperf_exp.networks import build

    task = _task(job)
    return Classifier(job, task, build(task.network, task.num_classes))


def data(job: Job, rank: int) -> tuple[Source, Any]:
    """See :class:`.work.Work`."""
    task = _task(job)
    if job.data is None:
        return feed.Synthetic(job, lambda: random_batch(job, rank)), None
    train, val = folders.find(Path(job.data))
    augmented = images.TrainingImages(train, task.image_size, job.seed, task.crop_min_area, task.flip)
    return loaders.of(task.loader).data(job, rank, augmented, images.ValidationImages(val, task.image_size))


def random_batch(job: Job, rank: int) -> Batch:
    """See :class:`.work.Work`."""
    task = _task(job)
    shape = (job.micro_batch, 3, task.image_size, task.image_size)
    generator = torch.Generator().manual_seed(job.seed + rank)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(job.device)
    labels = torch.randint(0, task.num_classes, (job.micro_batch,), generator=generator).to(job.device)
    return pixels, labels


def strategy(job: Job, environment: Torchrun) -> Any:
    """See :class:`.work.Work`."""
    if job.world == 1:
        return "auto"
    if job.compile and environment.local_world == job.world:
        # within a host sums take a hundredth of a step, less than a graph loses that is cut up to hide them
        torch._dynamo.config.optimize_ddp = False
    return DDPStrategy(
        cluster_environment=environment,
        process_group_backend=backend(job),
        timeout=TIMEOUT,
        broadcast_buffers=False,  # batch norm's are averaged when they are needed: before evaluation
        gradient_as_bucket_view=True,
        static_graph=job.accumulation == 1,
    )


def precision(job: Job) -> str:
    """See :class:`.work.Work`."""
    return "bf16-mixed" if job.precision == "bf16" else "32-true"


def log_settings(job: Job) -> Iterator[tuple[str, Any]]:
    """See :class:`.work.Work`; source: ``compliance_checker/training_4.0.0``, ResNet-50's last ruleset."""
    o = job.optimization
    yield "opt_name", o.name
    yield "model_bn_span", job.micro_batch
    yield "label_smoothing", _task(job).label_smoothing
    prefix = "lars" if o.name == "lars" else "sgd"
    yield f"{prefix}_opt_base_learning_rate", o.base_lr
    yield f"{prefix}_opt_end_learning_rate", o.end_lr
    yield f"{prefix}_opt_learning_rate_decay_poly_power", _whole(o.power)
    yield f"{prefix}_opt_learning_rate_decay_steps", o.decay_steps
    yield f"{prefix}_opt_momentum", o.momentum
    yield f"{prefix}_opt_weight_decay", o.weight_decay
    if o.name == "lars":
        yield "lars_epsilon", o.epsilon
        yield "lars_opt_learning_rate_warmup_epochs", _whole(o.warmup_epochs)
    else:
        yield "opt_learning_rate_warmup_epochs", _whole(o.warmup_epochs)


def log_block(job: Job, first_step: int, end_step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """See :class:`.work.Work`; epochs count from 1."""
    first = first_step // job.steps_per_epoch + 1
    last = max(first, -(-end_step // job.steps_per_epoch))
    return {"first_epoch_num": first, "epoch_count": last - first + 1}, {"first_epoch_num": first}


def log_place(job: Job, step: int) -> dict[str, Any]:
    """See :class:`.work.Work`."""
    return {"epoch_num": step // job.steps_per_epoch}


def log_value(value: float) -> float:
    """See :class:`.work.Work`: a share of top-1, which we have in percent."""
    return value / 100


def epoch(job: Job, step: int) -> float:
    """See :class:`.work.Work`."""
    return step // job.steps_per_epoch


def _task(job: Job) -> ImageTask:
    assert isinstance(job.task, ImageTask)
    return job.task


def _whole(value: float) -> float | int:
    """2.0 as 2: the checker compares with whole numbers."""
    return int(value) if value == int(value) else value
