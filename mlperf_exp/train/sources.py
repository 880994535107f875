"""What a training run reads: found and counted before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlperf_exp.errors import UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.kinds.images import folder_of
from mlperf_exp.messages import Plan
from mlperf_exp.train.folders import check_counts, find
from mlperf_exp.train.rules import RESNET


@dataclass(frozen=True, slots=True)
class TrainingData:
    """``path`` is None for synthetic samples."""

    path: Path | None
    train_samples: int
    eval_samples: int

    def __len__(self) -> int:
        return self.train_samples


def load(plan: Plan) -> Inputs:
    """Find the training and the validation images.

    Raises:
        UserError: they are not there, too few, or of other classes than the model has.
    """
    config = plan.config
    data = _images(plan)
    check_counts(data.train_samples, int(plan.engine["ranks"]), config.scenario.global_batch_size)
    return Inputs(None, data, None)


def _images(plan: Plan) -> TrainingData:
    dataset, model = plan.config.dataset, plan.config.model
    if dataset.synthetic:
        return TrainingData(None, dataset.samples or RESNET.train_samples, RESNET.eval_samples)
    if dataset.samples is not None:
        raise UserError("dataset.samples", "training takes all of the data set", "Leave it out")
    folder = folder_of(dataset)
    if folder is None:
        raise UserError("dataset.path", f"{dataset.name} needs a folder", "Give one, or choose dataset=digits")
    train, val = find(folder)
    if len(train.classes) != model.classes:
        raise UserError(
            "dataset.path",
            f"{folder} has {len(train.classes):,} classes, {model.name} names {model.classes:,}",
            f"Give model.classes={len(train.classes)}, or the model's own data",
        )
    return TrainingData(folder.absolute(), len(train), len(val))
