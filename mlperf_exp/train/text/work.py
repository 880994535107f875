"""Language modelling in a rank: FSDP2, indexed token ids, the log's keys of Llama 3.1 8B; see :class:`..work.Work`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from mlperf_exp.train import feed
from mlperf_exp.train.feed import Batch, Source
from mlperf_exp.train.job import Job, TextTask
from mlperf_exp.train.learner import Learner
from mlperf_exp.train.optimizers import ADAMW_BETAS, ADAMW_EPSILON
from mlperf_exp.train.text.learner import LanguageLearner
from mlperf_exp.train.text.samples import Texts, TrainingTexts, ValidationTexts
from mlperf_exp.train.torchrun import Torchrun, backend

METRIC = "log_perplexity"
_TIMEOUT = timedelta(minutes=30)  # of a collective: rank 0 may be writing a checkpoint of 96 GB meanwhile


def learner(job: Job) -> Learner:
    """See :class:`..work.Work`."""
    return LanguageLearner(job, _task(job))


def data(job: Job, rank: int) -> tuple[Source, Any]:
    """See :class:`..work.Work`; nothing is opened before the first sample is asked for."""
    task = _task(job)
    if job.data is None:
        return feed.Synthetic(job, lambda: random_batch(job, rank)), None
    folder = Path(job.data)
    train = TrainingTexts([folder / name for name in task.train], task, job.seed)
    validation = ValidationTexts([folder / task.validation], task, job.eval_samples, rank, job.world)
    return Texts(job, rank, train), DataLoader(validation, batch_size=job.micro_batch)


def random_batch(job: Job, rank: int) -> Batch:
    """See :class:`..work.Work`."""
    task = _task(job)
    generator = torch.Generator().manual_seed(job.seed + rank)
    shape = (job.micro_batch, task.sequence_length + 1)
    return torch.randint(0, task.vocab_size, shape, generator=generator).to(job.device)


def strategy(job: Job, environment: Torchrun) -> Any:
    """See :class:`..work.Work`."""
    made = ModelParallelStrategy(job.world, 1, process_group_backend=backend(job), timeout=_TIMEOUT)
    made.cluster_environment = environment
    return made


def precision(job: Job) -> str:
    """See :class:`..work.Work`: FSDP2 has its own."""
    return "32-true"


def log_settings(job: Job) -> Iterator[tuple[str, Any]]:
    """See :class:`..work.Work`; source: ``compliance_checker/training_6.1.0``, common and ``closed_llama31_8b``."""
    o, task = job.optimization, _task(job)
    kind = {"bf16": "bfloat16"}.get(job.precision, job.precision)
    yield "max_sequence_length", task.sequence_length
    yield "max_steps", job.max_steps
    yield "opt_name", o.name
    yield "opt_base_learning_rate", o.base_lr
    yield "opt_end_learning_rate", o.end_lr
    yield "opt_learning_rate_warmup_steps", o.warmup_steps
    yield "opt_learning_rate_decay_steps", o.decay_steps
    yield "opt_learning_rate_decay_schedule", "cosine with linear warmup"
    yield "opt_adamw_beta_1", ADAMW_BETAS[0]
    yield "opt_adamw_beta_2", ADAMW_BETAS[1]
    yield "opt_adamw_epsilon", ADAMW_EPSILON
    yield "opt_adamw_weight_decay", o.weight_decay
    yield "opt_gradient_clip_norm", task.clip_norm
    for part in ("linear", "attn", "comm"):
        yield f"lowest_numerical_precision_in_{part}", kind
    for way in ("tensor", "pipeline", "context", "expert"):
        yield f"{way}_parallelism", 1
    yield "micro_batch_size", job.micro_batch
    yield "config_filename", "config.yaml"


def log_block(job: Job, first_step: int, end_step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """See :class:`..work.Work`."""
    return log_place(job, first_step), log_place(job, end_step)


def log_place(job: Job, step: int) -> dict[str, Any]:
    """See :class:`..work.Work`: progress counts samples."""
    return {"samples_count": step * job.global_batch}


def log_value(value: float) -> float:
    """See :class:`..work.Work`."""
    return value


def epoch(job: Job, step: int) -> float:
    """See :class:`..work.Work`."""
    return step / job.steps_per_epoch


def _task(job: Job) -> TextTask:
    assert isinstance(job.task, TextTask)
    return job.task
