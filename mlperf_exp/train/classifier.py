"""The learner of an image classifier: every rank has the whole network, and DDP averages the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mlperf_exp.train import optimizers
from mlperf_exp.train.checkpoint import Saved
from mlperf_exp.train.feed import Batch
from mlperf_exp.train.images import MEAN, STD
from mlperf_exp.train.job import ImageTask, Job
from mlperf_exp.train.learner import Learner, from_rank_0


class Classifier(Learner):
    """``network`` maps normalized images (N, 3, H, W) to logits (N, classes); batches hold uint8 images and labels."""

    def __init__(self, job: Job, task: ImageTask, network: nn.Module) -> None:
        super().__init__(job)
        self.task = task
        self.network = network.to(memory_format=torch.channels_last) if task.channels_last else network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)
        self._loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self._plain_loss
        self._logits: Callable[[torch.Tensor], torch.Tensor] = self._plain_logits
        if job.compile:
            # max-autotune-no-cudagraphs would search for minutes; CUDA graphs have open bugs under DDP
            self._loss = torch.compile(self._plain_loss)
            self._logits = torch.compile(self._plain_logits)
        self._correct = torch.zeros((), dtype=torch.float64)

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (N, 3, H, W) as the network wants them."""
        images = (images.to(torch.float32) - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.task.channels_last else images

    def _plain_logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(self.normalized(images))
        return logits

    def _plain_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._plain_logits(images), labels, label_smoothing=self.task.label_smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss of one micro-batch."""
        return self._loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :mod:`mlperf_exp.train.optimizers`."""
        return optimizers.build(self.network, self.job.optimization, self.job.device)

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew, with the same batch norm statistics on every rank."""
        self._correct = torch.zeros((), dtype=torch.float64, device=self.device)
        self.settle()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is right."""
        images, labels = batch
        self._correct += (self._logits(images).argmax(1) == labels).sum()

    def on_validation_epoch_end(self) -> None:
        """Top-1 over the whole validation set, in percent."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._correct)
        self.value = 100 * float(self._correct) / self.job.eval_samples

    def prepare(self, saved: Saved | None) -> None:
        """See :class:`Learner`; DDP gives the weights to the other ranks."""
        if saved:
            self.network.load_state_dict(saved.network)

    def restore(self, saved: Saved | None, optimizer: torch.optim.Optimizer) -> int:
        """See :class:`Learner`."""
        step, state = from_rank_0((saved.step, saved.optimizer) if saved else (0, None), self.job.device)
        if torch.distributed.is_initialized():
            for buffer in self.network.buffers():  # batch norm's statistics, which DDP was told to leave alone
                torch.distributed.broadcast(buffer, 0)
        if state is not None:
            optimizer.load_state_dict(state)
        return int(step)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """See :class:`Learner`."""
        return self.network.state_dict(), optimizer.state_dict()

    def settle(self) -> None:
        """Give every rank the mean of all ranks' batch norm statistics; each saw other samples since the last time."""
        if not torch.distributed.is_initialized():
            return
        world = torch.distributed.get_world_size()
        for name, buffer in self.network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                torch.distributed.all_reduce(buffer)
                buffer /= world

    def remember(self) -> Callable[[], None]:
        """See :class:`Learner`."""
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        return lambda: self.network.load_state_dict(before)

    def answer(self, batch: Batch) -> None:
        """See :class:`Learner`."""
        self._logits(batch[0])
