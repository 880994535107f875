"""One rank of a training run: ``python -m mlperf_exp.train.worker JOB.json``, with torchrun's environment variables.

Leaves ``train/outcome.json`` (rank 0) or, where it fails, ``train/rank-N.error`` with one sentence.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import Callback

from mlperf_exp.errors import ExperimentError
from mlperf_exp.files import write_atomic, write_json
from mlperf_exp.train import checkpoint, feed
from mlperf_exp.train.course import Course
from mlperf_exp.train.job import Job
from mlperf_exp.train.learner import Data, Learner
from mlperf_exp.train.mlperf_log import MlperfLog
from mlperf_exp.train.pace import Diverged, Pace, Stopped
from mlperf_exp.train.torchrun import Torchrun
from mlperf_exp.train.work import Work, of

_stop = False


def main() -> None:
    """Run the rank; the exit status is 0 where it came to its end."""
    job = Job.read(Path(sys.argv[1]))
    rank = int(os.environ.get("RANK", "0"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; whoever started the ranks tells them
    signal.signal(signal.SIGTERM, _ask_to_stop)
    try:
        train(job, rank)
    except BaseException as error:
        write_atomic(job.folder / f"rank-{rank}.error", _reason(error) + "\n")
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _ask_to_stop(_: int, __: object) -> None:
    global _stop
    _stop = True


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:600]
    for kind in feed.UnreadableSample.__subclasses__():  # a loader's worker wraps it into its own words and a traceback
        if (name := f"{kind.__name__}: ") in str(error):
            return " ".join(str(error).split(name)[-1].splitlines()[0].split())
    known = isinstance(error, ExperimentError | Diverged | feed.UnreadableSample)
    return text if known else f"{type(error).__name__}: {text}"


def train(job: Job, rank: int) -> None:
    """Initialize, train to the target or to the end, leave the outcome."""
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.set_float32_matmul_precision("high")
    work = of(job)
    log = MlperfLog(job, work, job.folder / "result_0.txt" if rank == 0 else None)
    log.init()
    L.seed_everything(job.seed, verbose=False)
    saved, torn = checkpoint.newest(job) if job.resume and rank == 0 else (None, [])
    learner = work.learner(job)
    learner.prepare(saved)
    source, validation = work.data(job, rank)
    stages = feed.Stages(job, source)

    def save() -> None:
        learner.settle()
        _save(job, rank, learner, trainer)

    pace = Pace(job, rank, stages, save, lambda: _stop)
    course = Course(job, work, log, pace, stages, saved)
    trainer = _trainer(job, work, learner.gathers, [course, pace])
    status = "speed"
    try:
        trainer.fit(learner, datamodule=Data(stages, validation))
        if job.evaluation_steps():
            status = "reached" if course.reached else "missed"
            _save(job, rank, learner, trainer)  # the trained weights
    except Stopped:
        status = "stopped"
    except Diverged:
        log.run_stop(reached=False)
        raise
    except BaseException:
        whole = not learner.gathers or job.world == 1  # rank 0's state without the others, who may be gone
        if rank == 0 and whole and pace.made > course.first_step and pace.made == learner.step_done:
            _save(job, rank, learner, trainer)
        raise
    finally:
        stages.close()
    log.run_stop(reached=status == "reached")
    if rank == 0:
        write_json(job.folder / "outcome.json", asdict(course.outcome(status, tuple(torn))))


def _save(job: Job, rank: int, learner: Learner, trainer: L.Trainer) -> None:
    if rank == 0 or learner.gathers:
        network, optimizer = learner.state(trainer.optimizers[0])
        if rank == 0:
            checkpoint.save(job, learner.step_done, network, optimizer, {})


def _trainer(job: Job, work: Work, gathers: bool, callbacks: list[Callback]) -> L.Trainer:
    environment = Torchrun()
    trainer = L.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=environment.local_world,
        num_nodes=job.world // environment.local_world,
        strategy=work.strategy(job, environment),
        precision=work.precision(job),
        accumulate_grad_batches=job.accumulation,
        max_epochs=-1,
        barebones=True,
        use_distributed_sampler=False,
        benchmark=True,
        limit_val_batches=None if job.evaluation_steps() else 0,
        inference_mode=not gathers,  # a shard that was put together in it cannot be trained on any more
        callbacks=callbacks,
    )
    # Lightning broadcasts a flag before each step and waits for it, and takes SIGTERM for itself; Pace does both.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


if __name__ == "__main__":
    main()
