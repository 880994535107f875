"""Plan -> Job: what every rank needs to know."""

from __future__ import annotations

import os

from mlperf_exp.config import Config, Device, Training
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan
from mlperf_exp.train import kind
from mlperf_exp.train.job import Job, Submission
from mlperf_exp.train.rules import benchmark


def make_job(plan: Plan, inputs: Inputs) -> Job:
    """The job of a plan, on the samples that were found."""
    config, data, settings = plan.config, inputs.samples, plan.engine
    rules, backend, own = config.scenario, config.backend, kind.of(config.model)
    known = benchmark(config.model) or own.LIKE
    schedule = own.schedule(plan, data.train_samples)
    on_gpu = config.hw.device is Device.cuda
    per_node = settings["ranks"] // config.hw.nodes
    cores = config.hw.cpus_per_node or os.cpu_count() or 1
    return Job(
        run_dir=str(plan.run_dir),
        seed=config.seed,
        task=own.task(plan),
        data=None if data.path is None else str(data.path),
        train_samples=data.train_samples,
        eval_samples=data.eval_samples,
        workers=_workers(config, per_node, cores),
        device=config.hw.device.name,
        world=settings["ranks"],
        micro_batch=settings["micro_batch"],
        accumulation=settings["accumulation"],
        optimization=own.optimization(plan, data.train_samples),
        max_steps=schedule.max_steps,
        first_eval=schedule.first_eval,
        eval_every=schedule.eval_every,
        target=rules.target,
        precision=settings["precision"],
        compile=settings["compile"],
        log_every_steps=backend.log_every_steps,
        checkpoint_every_s=backend.checkpoint_every_s,
        checkpoints_kept=backend.checkpoints_kept,
        resume=config.resume.name == "auto",
        submission=Submission(
            benchmark=known.name,
            division=config.division.name,
            org=rules.submitter,
            platform=config.hw.name,
            status="onprem",
        ),
        steps=_speed_steps(plan, data.train_samples),
        warmup_iterations=settings["warmup_steps"],
        stall_timeout_s=rules.stall_timeout_s,
        threads=backend.threads or (None if on_gpu else max(1, cores // per_node)),
    )


def _speed_steps(plan: Plan, samples: int) -> int | None:
    """Random samples have no accuracy: without a number of steps they make one epoch."""
    rules: Training = plan.config.scenario
    if rules.steps is None and plan.config.dataset.synthetic:
        assert rules.global_batch_size is not None
        return max(1, samples // rules.global_batch_size)
    return rules.steps


def _workers(config: Config, per_node: int, cores: int) -> int:
    """Readers for each rank: with GPUs most cores but one a rank, on a processor none, for it is busy already."""
    if config.backend.workers is not None:
        return int(config.backend.workers)
    most = kind.of(config.model).READERS
    return max(1, min(most, cores // per_node - 1)) if config.hw.device is Device.cuda else 0
