"""What every rank of a training run needs to know: plain numbers and names, made by the plan, handed over as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mlperf_exp.files import write_atomic

ANOTHER = "Continue with the same settings, or start anew in another folder (hydra.run.dir)"  # another run's checkpoint


@dataclass(frozen=True, slots=True)
class Optimization:
    """An optimizer and its schedule; see :mod:`mlperf_exp.train.schedule` for the shape of the rate.

    ``base_lr`` and ``end_lr`` are learning rates; ``warmup_steps`` and ``decay_steps`` count optimizer steps.
    """

    name: str  # sgd, lars, adamw
    base_lr: float
    end_lr: float
    warmup_steps: int
    decay_steps: int
    power: float
    momentum: float
    weight_decay: float
    eta: float = 0.001  # LARS: the trust coefficient
    epsilon: float = 0.0
    warmup_epochs: float = 0.0  # as the MLPerf log wants it


@dataclass(frozen=True, slots=True)
class Submission:
    """What the MLPerf log says about who sends what."""

    benchmark: str
    division: str
    org: str
    platform: str
    status: str


@dataclass(frozen=True, slots=True)
class Job:
    """One training run, the same for all its ranks.

    A *step* is one step of the optimizer, over ``global_batch`` samples; a *micro-batch* is what one rank takes at
    once. ``global_batch == world * micro_batch * accumulation``. ``target`` is a top-1 share in percent. ``steps``
    ends a run early that measures speed only. ``data`` is a folder with ``train/`` and ``val/``; None: synthetic.
    """

    run_dir: str
    seed: int
    network: str
    num_classes: int
    image_size: int
    data: str | None
    train_samples: int
    eval_samples: int
    loader: str
    workers: int
    device: str  # cpu, cuda
    world: int
    micro_batch: int
    accumulation: int
    optimization: Optimization
    label_smoothing: float
    crop_min_area: float  # of a training image, 0 to 1
    flip: bool
    max_epochs: int
    eval_offset: int
    eval_period: int
    target: float | None
    precision: str  # fp32, bf16
    channels_last: bool
    compile: bool
    log_every_steps: int
    checkpoint_every_s: float | None
    checkpoints_kept: int
    resume: bool
    stall_timeout_s: float
    submission: Submission
    steps: int | None = None
    warmup_iterations: int = 0
    threads: int | None = None  # a rank's share of the cores

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.world * self.micro_batch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in a pass over the training set; what is left over is another sample set each epoch."""
        return self.train_samples // self.global_batch

    @property
    def total_steps(self) -> int:
        """The last step that may be made."""
        whole = self.max_epochs * self.steps_per_epoch
        return whole if self.steps is None else min(whole, self.steps)

    @property
    def folder(self) -> Path:
        """Where the ranks write."""
        return Path(self.run_dir) / "train"

    def beat(self, rank: int) -> Path:
        """A file whose time is that of the rank's last sign of life, in training and in evaluation."""
        return self.folder / f"rank-{rank}.beat"

    def evaluation_steps(self) -> list[int]:
        """The steps after which is evaluated: after ``eval_offset`` epochs, then every ``eval_period``, and at the end.

        Source: MLPerf training policies, ResNet-50: every 4 epochs, the first after one to four. A run that is ended
        by ``steps`` and so measures speed only is not evaluated.
        """
        if self.steps is not None:
            return []
        epochs = list(range(self.eval_offset, self.max_epochs + 1, self.eval_period))
        if not epochs or epochs[-1] != self.max_epochs:
            epochs.append(self.max_epochs)
        return [epoch * self.steps_per_epoch for epoch in epochs]

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: everything that its weights and its order depend on."""
        kept = (
            "seed", "network", "num_classes", "image_size", "train_samples", "world", "micro_batch", "accumulation",
            "label_smoothing", "crop_min_area", "flip", "precision",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in kept}
        return values | {"optimization": msgspec.to_builtins(self.optimization)}

    def difference(self, found: dict[str, Any]) -> str | None:
        """The first setting in which a checkpoint's identity differs, in words; None: it may be continued."""
        for key, wanted in self.identity().items():
            if found.get(key) != wanted:
                return f"was made with {key}={found.get(key)}, this run has {key}={wanted}"
        return None

    def write(self, path: Path) -> None:
        """Hand the job over."""
        write_atomic(path, msgspec.json.format(msgspec.json.encode(self)).decode() + "\n")

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job that :meth:`write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
