"""What trains: a Lightning module for each kind of model on one base, and the data module around its feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L  # noqa: N812 - Lightning's own convention
import torch
from torch import nn

from mlperf_exp.train import schedule
from mlperf_exp.train.checkpoint import Saved
from mlperf_exp.train.feed import Batch, Stages
from mlperf_exp.train.job import Job


class Learner(L.LightningModule):
    """A network that learns a job.

    ``step_done`` counts optimizer steps; the rate of each is set before it is made. ``value`` is the metric of the last
    evaluation. A kind gives ``training_step``, which answers a micro-batch's mean loss, ``configure_optimizers``, the
    validation's hooks and what is below; nothing that is called in a step may wait for the device.
    """

    network: nn.Module
    gathers = False  # whether :meth:`state` needs all ranks

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.step_done = 0
        self.value: float | None = None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the step's learning rate."""
        rate = schedule.rate(self.job.optimization, self.step_done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.step_done += 1

    def prepare(self, saved: Saved | None) -> None:
        """Take a checkpoint's weights before anything is set up; None on other ranks than 0 and where there is none."""

    def restore(self, saved: Saved | None, optimizer: torch.optim.Optimizer) -> int:
        """Take on all ranks what rank 0 has read; returns the step to go on from."""
        raise NotImplementedError

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """The network's and the optimizer's state for a checkpoint, whole on rank 0."""
        raise NotImplementedError

    def settle(self) -> None:
        """Make what ranks keep for themselves equal, before an evaluation or a checkpoint."""

    def remember(self) -> Callable[[], None]:
        """What puts the weights of now back, after a warm-up."""
        raise NotImplementedError

    def answer(self, batch: Batch) -> None:
        """A forward pass as evaluation makes it, to have it compiled."""
        raise NotImplementedError


class Data(L.LightningDataModule):
    """The stages to train on, and a rank's share of the validation set."""

    def __init__(self, stages: Stages, validation: Any) -> None:
        super().__init__()
        self._stages, self._validation = stages, validation

    def train_dataloader(self) -> Stages:
        """The same object for all of Lightning's epochs; see :class:`mlperf_exp.train.feed.Stages`."""
        return self._stages

    def val_dataloader(self) -> Any:
        """None where nothing is evaluated."""
        return self._validation or []


def from_rank_0(value: Any, device: str) -> Any:
    """``value`` as rank 0 has it: other nodes need not see its checkpoint."""
    found = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, device=torch.device(device))
    return found[0]
