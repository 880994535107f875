"""MLPerf Training's own log, ``train/result_0.txt``: on rank 0, with every key that the ruleset asks for.

Source: mlcommons/logging, ``compliance_checker``, and the training policies; what only one kind of model logs is said
by its :class:`mlperf_exp.train.work.Work`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mlperf_exp.train.job import Job
from mlperf_exp.train.work import Work


class MlperfLog:
    """The events of one run, in the order that the rules want; all methods do nothing on other ranks."""

    def __init__(self, job: Job, work: Work, path: Path | None) -> None:
        self._job, self._work = job, work
        self._logger: Any = None
        self._block_stop: dict[str, Any] = {}
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
        job, sent = self._job, self._job.submission
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
            *self._work.log_settings(job),
        ):
            self._event(key, value)

    def run_start(self) -> None:
        """Initialization ends, the run begins: before any data is touched."""
        self._end("init_stop")
        self._start("run_start")

    def block_start(self, first_step: int, end_step: int) -> None:
        """The steps from the one after ``first_step`` to ``end_step``, up to an evaluation."""
        started, self._block_stop = self._work.log_block(self._job, first_step, end_step)
        self._start("block_start", started)

    def block_stop(self) -> None:
        """The block that began last ends."""
        self._end("block_stop", self._block_stop)

    def eval_start(self, step: int) -> None:
        """An evaluation after so many steps."""
        self._start("eval_start", self._work.log_place(self._job, step))

    def eval_stop(self, step: int, value: float) -> None:
        """Its result."""
        place = self._work.log_place(self._job, step)
        self._event("eval_accuracy", self._work.log_value(value), place)
        self._end("eval_stop", place)

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
