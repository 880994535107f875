"""What a training run reads: found and counted before anything is started."""

from __future__ import annotations

from mlperf_exp.errors import UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan
from mlperf_exp.train import kind


def load(plan: Plan) -> Inputs:
    """Find the training and the validation samples.

    Raises:
        UserError: they are not there, too few, or not of the model.
    """
    own = kind.of(plan.config.model)
    data = own.find(plan)
    check_counts(data.train_samples, int(plan.engine["ranks"]), plan.config.scenario.global_batch_size, own.NOUN)
    return Inputs(None, data, None)


def check_counts(samples: int, ranks: int, global_batch: int, noun: str) -> None:
    """Refuse fewer training samples than one step, or one sample a rank, needs.

    Raises:
        UserError: naming the batch.
    """
    if samples < ranks:
        raise UserError("dataset.path", f"{samples:,} {noun} are fewer than the {ranks:,} ranks", "Use fewer GPUs")
    if samples < global_batch:
        raise UserError(
            "scenario.global_batch_size",
            f"one step takes {global_batch:,} {noun}, the data set has {samples:,}",
            f"Give at most {samples:,}",
        )
