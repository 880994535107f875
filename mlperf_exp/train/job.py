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


class ImageTask(msgspec.Struct, frozen=True, tag="images", tag_field="kind"):
    """Images and their classes. ``crop_min_area`` is the least part of an image that a random crop takes, 0 to 1."""

    network: str  # a name of mlperf_exp/networks.py
    num_classes: int
    image_size: int  # pixels
    label_smoothing: float
    crop_min_area: float
    flip: bool
    channels_last: bool
    loader: str

    def identity(self) -> dict[str, Any]:
        """What weights and order depend on."""
        kept = ("network", "num_classes", "image_size", "label_smoothing", "crop_min_area", "flip")
        return {name: getattr(self, name) for name in kept}


class TextTask(msgspec.Struct, frozen=True, tag="text", tag_field="kind"):
    """Texts, and a Llama that learns to go on with them. ``train`` and ``validation`` are files in the job's folder."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    rms_norm_eps: float
    sequence_length: int  # tokens that a sample trains on
    train: tuple[str, ...]
    validation: str
    clip_norm: float
    recompute: bool

    def identity(self) -> dict[str, Any]:
        """What weights and order depend on."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))  # as a checkpoint's facts have it
        return {key: value for key, value in values.items() if key not in ("kind", "validation", "recompute")}


Task = ImageTask | TextTask


@dataclass(frozen=True, slots=True)
class Job:
    """One training run, the same for all its ranks.

    A *step* is one step of the optimizer, over ``global_batch`` samples; a *micro-batch* is what one rank takes at
    once. ``global_batch == world * micro_batch * accumulation``. ``data`` is a folder; None: synthetic samples.
    The run is evaluated after ``first_eval`` steps and then every ``eval_every``, until ``target`` is reached or
    ``max_steps`` are made. ``steps`` ends a run early that measures speed only.
    """

    run_dir: str
    seed: int
    task: Task
    data: str | None
    train_samples: int
    eval_samples: int
    workers: int
    device: str  # cpu, cuda
    world: int
    micro_batch: int
    accumulation: int
    optimization: Optimization
    max_steps: int
    first_eval: int
    eval_every: int
    target: float | None
    precision: str  # fp32, bf16
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
        return self.max_steps if self.steps is None else min(self.max_steps, self.steps)

    @property
    def folder(self) -> Path:
        """Where the ranks write."""
        return Path(self.run_dir) / "train"

    def beat(self, rank: int) -> Path:
        """A file whose time is that of the rank's last sign of life, in training and in evaluation."""
        return self.folder / f"rank-{rank}.beat"

    def evaluation_steps(self) -> list[int]:
        """The steps after which is evaluated: ``first_eval``, then every ``eval_every``, and at the end.

        A run that is ended by ``steps`` and so measures speed only is not evaluated.
        """
        if self.steps is not None:
            return []
        steps = list(range(self.first_eval, self.max_steps + 1, self.eval_every))
        return steps if steps and steps[-1] == self.max_steps else [*steps, self.max_steps]

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: everything that its weights and its order depend on."""
        kept = ("seed", "train_samples", "world", "micro_batch", "accumulation", "precision")
        values = self.task.identity() | {name: getattr(self, name) for name in kept}
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
