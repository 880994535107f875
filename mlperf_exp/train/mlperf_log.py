"""MLPerf Training's own log, ``train/result_0.txt``: on rank 0, with every key that the ruleset asks for.

Source: mlcommons/logging, ``compliance_checker/training_4.0.0`` (ResNet-50's last ruleset), and the training policies.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from mlperf_exp.train.job import Job

RULESET = "4.0.0"


class MlperfLog:
    """The events of one run, in the order that the rules want; all methods do nothing on other ranks."""

    def __init__(self, job: Job, path: Path | None) -> None:
        self._job = job
        self._logger: Any = None
        if path is None:
            return
        from mlperf_logging import mllog

        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # mllog appends
        mllog.config(filename=str(path), root_dir=str(Path(__file__).parent))
        logging.getLogger("mllog_default").propagate = False
        self._logger = mllog.get_mllogger()
        for handler in list(self._logger.logger.handlers):  # it also prints to the terminal
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                self._logger.logger.removeHandler(handler)

    def init(self) -> None:
        """Initialization begins; who submits what, with which hyperparameters."""
        if self._logger is None:
            return
        job, o, sent = self._job, self._job.optimization, self._job.submission
        self._event("cache_clear", True)
        self._start("init_start")
        for key, value in (
            ("submission_benchmark", sent.benchmark),
            ("submission_division", sent.division),
            ("submission_org", sent.org),
            ("submission_platform", sent.platform),
            ("submission_status", sent.status),
            ("seed", job.seed),
            ("global_batch_size", job.global_batch),
            ("gradient_accumulation_steps", job.accumulation),
            ("train_samples", job.train_samples),
            ("eval_samples", job.eval_samples),
            ("opt_name", o.name),
            ("model_bn_span", job.micro_batch),
            ("label_smoothing", job.label_smoothing),
        ):
            self._event(key, value)
        prefix = "lars" if o.name == "lars" else "sgd"
        self._event(f"{prefix}_opt_base_learning_rate", o.base_lr)
        self._event(f"{prefix}_opt_end_learning_rate", o.end_lr)
        self._event(f"{prefix}_opt_learning_rate_decay_poly_power", whole(o.power))
        self._event(f"{prefix}_opt_learning_rate_decay_steps", o.decay_steps)
        self._event(f"{prefix}_opt_momentum", o.momentum)
        self._event(f"{prefix}_opt_weight_decay", o.weight_decay)
        if o.name == "lars":
            self._event("lars_epsilon", o.epsilon)
            self._event("lars_opt_learning_rate_warmup_epochs", whole(o.warmup_epochs))
        else:
            self._event("opt_learning_rate_warmup_epochs", whole(o.warmup_epochs))

    def run_start(self) -> None:
        """Initialization ends, the run begins: before any data is touched."""
        self._end("init_stop")
        self._start("run_start")

    def block_start(self, first_epoch: int, epochs: int) -> None:
        """Epochs ``first_epoch`` (from 1) and on, up to an evaluation."""
        self._start("block_start", {"first_epoch_num": first_epoch, "epoch_count": epochs})

    def block_stop(self, first_epoch: int) -> None:
        """The block that began with this epoch ends."""
        self._end("block_stop", {"first_epoch_num": first_epoch})

    def eval_start(self, epoch: int) -> None:
        """An evaluation after so many epochs."""
        self._start("eval_start", {"epoch_num": epoch})

    def eval_stop(self, epoch: int, top1: float) -> None:
        """Its result, top-1 in percent; the log wants a share."""
        self._event("eval_accuracy", top1 / 100, {"epoch_num": epoch})
        self._end("eval_stop", {"epoch_num": epoch})

    def run_stop(self, reached: bool) -> None:
        """The target is reached, or given up."""
        self._end("run_stop", {"status": "success" if reached else "aborted"})

    def _event(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        if self._logger is not None:
            self._logger.event(key=key, value=value, metadata=metadata, stack_offset=2)

    def _start(self, key: str, metadata: dict[str, Any] | None = None) -> None:
        if self._logger is not None:
            self._logger.start(key=key, value=None, metadata=metadata, stack_offset=2)

    def _end(self, key: str, metadata: dict[str, Any] | None = None) -> None:
        if self._logger is not None:
            self._logger.end(key=key, value=None, metadata=metadata, stack_offset=2)


def whole(value: float) -> float | int:
    """2.0 as 2: the checker compares with whole numbers."""
    return int(value) if math.isfinite(value) and value == int(value) else value
