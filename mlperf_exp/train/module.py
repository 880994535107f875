"""The Lightning module of an image classifier, and the data module around its feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L  # noqa: N812 - Lightning's own convention
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mlperf_exp.train import optimizers, schedule
from mlperf_exp.train.feed import Batch, Stages
from mlperf_exp.train.images import MEAN, STD
from mlperf_exp.train.job import Job


class Classifier(L.LightningModule):
    """``network`` maps normalized images (N, 3, H, W) to logits (N, classes); batches hold uint8 images and labels.

    ``step_done`` counts optimizer steps; the rate of each is set before it is made. Nothing here waits for the device.
    """

    def __init__(self, job: Job, network: nn.Module) -> None:
        super().__init__()
        self.job = job
        self.network = network.to(memory_format=torch.channels_last) if job.channels_last else network
        self.step_done = 0
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)
        self._loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self._plain_loss
        self._logits: Callable[[torch.Tensor], torch.Tensor] = self._plain_logits
        if job.compile:
            # max-autotune-no-cudagraphs would search for minutes; CUDA graphs have open bugs under DDP
            self._loss = torch.compile(self._plain_loss)
            self._logits = torch.compile(self._plain_logits)
        self._correct = torch.zeros((), dtype=torch.float64)
        self.top1: float | None = None  # of the last evaluation, in percent

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (N, 3, H, W) as the network wants them."""
        images = (images.to(torch.float32) - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.job.channels_last else images

    def _plain_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(self.normalized(images))
        return logits

    def _plain_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._plain_logits(images), labels, label_smoothing=self.job.label_smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss of one micro-batch."""
        return self._loss(*batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the step's learning rate."""
        rate = schedule.rate(self.job.optimization, self.step_done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.step_done += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :mod:`mlperf_exp.train.optimizers`."""
        return optimizers.build(self.network, self.job.optimization, self.job.device)

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew, with the same batch norm statistics on every rank."""
        self._correct = torch.zeros((), dtype=torch.float64, device=self.device)
        average_statistics(self.network)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is right."""
        images, labels = batch
        self._correct += (self._logits(images).argmax(1) == labels).sum()

    def on_validation_epoch_end(self) -> None:
        """``top1`` over the whole validation set, in percent."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._correct)
        self.top1 = 100 * float(self._correct) / self.job.eval_samples


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


def average_statistics(network: nn.Module) -> None:
    """Give every rank the mean of all ranks' batch norm statistics; each saw other samples since the last time."""
    if not torch.distributed.is_initialized():
        return
    world = torch.distributed.get_world_size()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.distributed.all_reduce(buffer)
            buffer /= world
