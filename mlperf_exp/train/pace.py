"""What happens beside the training steps: losses and speed every so many steps, checkpoints, requests to stop.

The device is waited for only when a line is written. Ranks agree on stopping and on checkpoints by a small CPU
all-reduce that is sent at one step and awaited at the next, so that nobody stands still for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import Callback

from mlperf_exp.train.feed import Stages
from mlperf_exp.train.job import Job
from mlperf_exp.train.learner import Learner
from mlperf_exp.train.progress_log import FILE, Entry, Line, append


class Diverged(RuntimeError):
    """The loss is no number any more; says at which step."""


class Stopped(Exception):
    """The run ends before its target, by request."""


class Pace(Callback):
    """See the module. ``save`` writes a checkpoint; ``wants_stop`` tells whether this rank was asked to end."""

    def __init__(
        self, job: Job, rank: int, stages: Stages, save: Callable[[], None], wants_stop: Callable[[], bool]
    ) -> None:
        self._job, self._rank, self._stages, self._save, self._wants_stop = job, rank, stages, save, wants_stop
        self._losses: list[torch.Tensor] = []
        self._micro = 0
        self.made = 0  # optimizer steps that are complete
        self._line_step = 0
        self._line_at = self._saved_at = 0.0
        self._waited = 0.0
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._path = job.folder / FILE if rank == 0 else None
        self._beat, self._beat_at = job.beat(rank), 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The clock starts."""
        assert isinstance(pl_module, Learner)
        self.made = self._line_step = pl_module.step_done
        self._line_at = self._saved_at = time.perf_counter()
        if self._job.world > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; at the end of a step, see what is due."""
        assert isinstance(pl_module, Learner)
        self._alive()
        self._losses.append(outputs["loss"])
        self._micro += 1
        if self._micro < self._job.accumulation:
            return
        self._micro = 0
        self.made = pl_module.step_done
        if self.made - self._line_step >= self._job.log_every_steps:
            self._write_line(pl_module)
        stop, save = self._agreed()
        if stop or save:
            if self.made > self._line_step:
                self._write_line(pl_module)
            self._save()
            self._saved_at = self._line_at = time.perf_counter()
        if stop:
            raise Stopped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a stage."""
        self.settle(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluation's time is not training's."""
        self.settle(pl_module)

    def on_validation_batch_end(self, *_: Any) -> None:
        """A sign of life."""
        self._alive()

    def settle(self, module: L.LightningModule) -> None:
        """Write what has not been written of the steps made, and start the clock anew."""
        assert isinstance(module, Learner)
        if self.made > self._line_step:
            self._write_line(module)
        self.restart()

    def restart(self) -> None:
        """What passed until now is not training."""
        self._line_at = time.perf_counter()
        self._waited = self._stages.waited_s

    def write(self, entry: Entry) -> None:
        """Append to ``progress.jsonl``."""
        if self._path is not None:
            append(self._path, entry)

    def _alive(self) -> None:
        """Let the supervisor know, once a second at most."""
        if (now := time.perf_counter()) - self._beat_at > 1.0:
            self._beat_at = now
            self._beat.touch()

    def _write_line(self, module: Learner) -> None:
        job = self._job
        # Lightning has divided each by the accumulation; reading them waits for the device
        losses = torch.stack(self._losses).float().reshape(-1, job.accumulation).sum(1).tolist()
        self._losses.clear()
        now, steps = time.perf_counter(), self.made - self._line_step
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise Diverged(f"the loss was {losses[bad]} at step {self._line_step + bad + 1}")
        seconds = now - self._line_at
        line = Line(
            at=time.time(),
            step=self.made,
            epoch=self.made / job.steps_per_epoch,
            loss=sum(losses) / len(losses),
            learning_rate=module.optimizers().param_groups[0]["lr"],
            seconds=seconds,
            samples_per_second=steps * job.global_batch / seconds,
            waited_share=min(1.0, (self._stages.waited_s - self._waited) / seconds),
        )
        self.write(line)
        self._line_step = self.made
        self.restart()

    def _agreed(self) -> tuple[bool, bool]:
        """Whether all ranks stop, and whether a checkpoint is due, as of the step before."""
        every = self._job.checkpoint_every_s
        due = self._rank == 0 and every is not None and time.perf_counter() - self._saved_at >= every
        own = torch.tensor([self._wants_stop(), due], dtype=torch.int32)
        if self._group is None:
            return bool(own[0]), bool(own[1])
        before, self._asked = (
            self._asked,
            (
                torch.distributed.all_reduce(own, torch.distributed.ReduceOp.MAX, self._group, async_op=True),
                own,
            ),
        )
        if before is None:
            return False, False
        before[0].wait()
        stop, save = (bool(value) for value in before[1])
        if save:  # the request that is under way was made before this checkpoint
            self._asked[0].wait()
            stop, self._asked = stop or bool(self._asked[1][0]), None
        return stop, save
