"""The order of a run: warm-up, run_start, blocks and evaluations, the end; and what is left of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import Callback

from mlperf_exp.train import checkpoint, feed
from mlperf_exp.train.job import Job
from mlperf_exp.train.learner import Learner
from mlperf_exp.train.mlperf_log import MlperfLog
from mlperf_exp.train.pace import Pace
from mlperf_exp.train.progress_log import Evaluated, Started
from mlperf_exp.train.rules import reaches
from mlperf_exp.train.work import Work


@dataclass(frozen=True, slots=True)
class Outcome:
    """What rank 0 leaves: how the run ended, and its figures.

    ``status`` is reached, missed (all epochs made), stopped (asked to end) or speed (no evaluation wanted).
    ``window_ns`` is MLPerf's time, from run_start to run_stop, by ``perf_counter_ns``; rates are in ``progress.jsonl``.
    """

    status: str
    step: int
    first_step: int
    window_ns: tuple[int, int]
    eval_s: float
    peak_memory_mib: float
    notes: tuple[str, ...] = ()


class Course(Callback):
    """See the module; ``saved`` is the checkpoint that rank 0 has read, if any."""

    def __init__(
        self,
        job: Job,
        work: Work,
        log: MlperfLog,
        pace: Pace,
        stages: feed.Stages,
        saved: checkpoint.Saved | None,
    ) -> None:
        self._job, self._work, self._log, self._pace, self._stages = job, work, log, pace, stages
        self._saved = saved
        self.first_step = 0
        self._run_started_ns = 0
        self._eval_started = 0.0
        self._eval_s = 0.0
        self.reached = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything is in place and no data was touched: warm up, then the run starts."""
        assert isinstance(pl_module, Learner)
        if self._job.warmup_iterations:
            _warm_up(self._job, self._work, trainer, pl_module)
        self.first_step = pl_module.step_done = pl_module.restore(self._saved, trainer.optimizers[0])
        self._saved = None
        self._stages.start_at(self.first_step)
        self._run_started_ns = time.perf_counter_ns()
        self._log.run_start()
        self._pace.write(Started(time.time(), pl_module.step_done))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A block begins: the steps up to the next evaluation."""
        assert isinstance(pl_module, Learner)
        step = pl_module.step_done
        ends = [end for end in self._job.evaluation_steps() if end > step]
        self._log.block_start(step, min([*ends[:1], self._job.total_steps]))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An evaluation begins."""
        assert isinstance(pl_module, Learner)
        self._eval_started = time.perf_counter()
        self._log.eval_start(pl_module.step_done)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Its result; at the target, the run is done."""
        assert isinstance(pl_module, Learner)
        assert pl_module.value is not None
        now = time.perf_counter()
        seconds = now - self._eval_started
        self._eval_s += seconds
        step, value, metric = pl_module.step_done, pl_module.value, self._work.METRIC
        self._log.eval_stop(step, value)
        run_s = now - self._run_started_ns / 1e9
        epoch = self._work.epoch(self._job, step)
        self._pace.write(Evaluated(time.time(), step, epoch, metric, value, seconds, run_s))
        self._pace.restart()
        self.reached = self._job.target is not None and reaches(metric, value, self._job.target)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The block ends, and with it the run where nothing is left to do."""
        assert isinstance(pl_module, Learner)
        self._log.block_stop()
        if self.reached or pl_module.step_done >= self._job.total_steps:
            trainer.should_stop = True

    def outcome(self, status: str, notes: tuple[str, ...]) -> Outcome:
        """The run's figures."""
        return Outcome(
            status=status,
            step=self._pace.made,
            first_step=self.first_step,
            window_ns=(self._run_started_ns, time.perf_counter_ns()),
            eval_s=self._eval_s,
            peak_memory_mib=_peak_memory_mib(self._job),
            notes=notes,
        )


def _warm_up(job: Job, work: Work, trainer: L.Trainer, learner: Learner) -> None:
    """Compile and choose kernels on random data, then put everything back: MLPerf counts this as initialization."""
    put_back = learner.remember()
    optimizer = trainer.optimizers[0]
    batch = work.random_batch(job, 0)
    for _ in range(job.warmup_iterations):
        loss = trainer.strategy.training_step(batch, 0)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if job.evaluation_steps():
        learner.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            learner.answer(batch)
        learner.train()
    optimizer.state.clear()
    put_back()
    if job.device == "cuda":
        torch.cuda.synchronize()


def _peak_memory_mib(job: Job) -> float:
    """Of this rank: the GPU's by PyTorch's allocator, or the process's resident set."""
    if job.device == "cuda":
        return float(torch.cuda.max_memory_reserved() / 2**20)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
