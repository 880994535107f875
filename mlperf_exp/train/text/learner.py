"""The learner of a language model: FSDP2 over all ranks, a world of one too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict as states

from mlperf_exp.train import optimizers
from mlperf_exp.train.checkpoint import Saved
from mlperf_exp.train.feed import Batch
from mlperf_exp.train.job import Job, TextTask
from mlperf_exp.train.learner import Learner, from_rank_0
from mlperf_exp.train.text.network import Llama, prepared
from mlperf_exp.train.text.sharding import initialize, shard

_WHOLE = states.StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_RANK_0 = states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class LanguageLearner(Learner):
    """``network`` maps token ids (N, S + 1) to each sample's loss; so are batches. Those of validation have weights."""

    network: Llama
    gathers = True

    def __init__(self, job: Job, task: TextTask) -> None:
        super().__init__(job)
        self.task = task
        self._made = False
        self._sums = torch.zeros(2, dtype=torch.float64)  # of losses, and of samples

    def configure_model(self) -> None:
        """Make the network's shards on the device; called by Lightning once the ranks know each other."""
        if self._made:
            return
        with torch.device("meta"):
            network = Llama(self.task)
        prepared(network, recompute=self.task.recompute, compiled=self.job.compile)
        shard(network, self.device_mesh["data_parallel"], self.job.precision == "bf16")
        network.to_empty(device=self.trainer.strategy.root_device)  # where Lightning moves the module only later
        initialize(network, self.job.seed)
        self.network, self._made = network, True

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The mean loss of one micro-batch."""
        loss: torch.Tensor = self.network(batch).mean()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the whole gradient, over all ranks; set the step's learning rate."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.task.clip_norm)
        super().on_before_optimizer_step(optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See :mod:`mlperf_exp.train.optimizers`."""
        return optimizers.build(self.network, self.job.optimization, self.job.device)

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up losses; a sample of weight 0 only keeps the ranks at one pace."""
        tokens, weights = batch
        self._sums += torch.stack(((self.network(tokens) * weights).sum(), weights.sum()))

    def on_validation_epoch_end(self) -> None:
        """The log perplexity over all of the validation samples."""
        torch.distributed.all_reduce(self._sums)
        self.value = float(self._sums[0] / self._sums[1])

    def restore(self, saved: Saved | None, optimizer: torch.optim.Optimizer) -> int:
        """See :class:`Learner`; ranks get their shards one parameter after the other."""
        step = int(from_rank_0(saved.step if saved else 0, self.job.device))
        if step:
            network, optimization = (saved.network, saved.optimizer) if saved else ({}, {})
            states.set_model_state_dict(self.network, network, options=_FROM_RANK_0)
            states.set_optimizer_state_dict(self.network, optimizer, optimization, options=_FROM_RANK_0)
        return step

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """See :class:`Learner`; empty on other ranks than 0."""
        network = states.get_model_state_dict(self.network, options=_WHOLE)
        return network, states.get_optimizer_state_dict(self.network, optimizer, options=_WHOLE)

    def remember(self) -> Callable[[], None]:
        """See :class:`Learner`: a warm-up comes before a checkpoint is taken."""
        return lambda: initialize(self.network, self.job.seed)

    def answer(self, batch: Batch) -> None:
        """See :class:`Learner`."""
        self.network(batch)
