"""Plan -> Measurement for training: start this node's ranks, follow what they write, keep all that they finished."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlperf_exp import network
from mlperf_exp.config import Device
from mlperf_exp.errors import Interrupted, RunFailed, UserError
from mlperf_exp.inputs import Inputs, load
from mlperf_exp.messages import Measurement, Plan, Score
from mlperf_exp.progress import Progress
from mlperf_exp.train import kind, progress_log, supervise
from mlperf_exp.train.handover import make_job
from mlperf_exp.train.job import ANOTHER, Job
from mlperf_exp.train.live import TrainLive
from mlperf_exp.train.log_check import check
from mlperf_exp.train.nodes import Nodes
from mlperf_exp.train.rules import benchmark

_OUTCOME = "outcome.json"


def train(plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    """A whole training run; a failure or an interruption is part of the answer, with all that finished before it.

    Raises:
        UserError: a checkpoint in the run's folder belongs to another run.
    """
    job = make_job(plan, inputs)
    _prepare(job)
    progress.phase("init")
    follower = _Follower(job, progress)
    began_ns = time.perf_counter_ns()
    nodes = Nodes.from_environment(plan.config.hw.nodes)
    ended = supervise.run(job, nodes, follower.look, _variables(plan))
    follower.look()
    outcome = _outcome(job)
    failure = ended.failure
    if failure is None and outcome is None:
        failure = "interrupted" if ended.interrupted else "the ranks ended without an outcome"
    interrupted = ended.interrupted and (outcome is None or outcome["status"] == "stopped")
    history = follower.history
    measurement = Measurement(
        metrics=_metrics(plan, job, history, outcome),
        phases=_phases(began_ns, outcome),
        failure="interrupted" if interrupted else failure,
        interrupted=interrupted,
        warnings=(*inputs.warnings, *(outcome["notes"] if outcome else ())),
        score=_score(job, history),
        training=_record(job, history, outcome),
        window_ns=(outcome["window_ns"][0], outcome["window_ns"][1]) if outcome else None,
    )
    if measurement.failure or job.steps is not None:
        return measurement
    began = time.perf_counter()
    checked = check(job, (benchmark(plan.config.model) or kind.of(plan.config.model).LIKE).ruleset)
    phases = measurement.phases | {"check_s": time.perf_counter() - began}
    return replace(measurement, compliance=(checked,), phases=phases)


def follow(plan: Plan) -> None:
    """The part of a node that is not the first: its ranks only; the first node keeps the record.

    Raises:
        RunFailed, Interrupted: as the first node's process says it too.
    """
    job = make_job(plan, load(plan))
    job.folder.mkdir(parents=True, exist_ok=True)
    job.write(_job_file(job))
    ended = supervise.run(job, Nodes.from_environment(plan.config.hw.nodes), lambda: None, _variables(plan))
    if ended.interrupted:
        raise Interrupted(f"interrupted; what was finished is in the first node's {plan.run_dir}")
    if ended.failure:
        raise RunFailed(f"the run failed: {ended.failure}")


def unfinished(plan: Plan) -> bool:
    """Whether the plan's folder holds a training that was interrupted or failed, which this plan goes on with.

    Raises:
        UserError: it does, and the plan is not to go on with it.
    """
    folder = plan.run_dir / "train"
    if "train" not in plan.modes:
        return False
    saved = any(folder.glob("checkpoints/*.pt"))
    try:
        status = json.loads((plan.run_dir / "result.json").read_text())["run"]["status"]
    except (OSError, ValueError, KeyError):
        status = "killed" if saved else "finished"
    if status == "finished":
        return False
    if plan.config.resume.name == "never":
        problem = f"{folder} is of an earlier run that did not come to its end, and resume is never"
        raise UserError("hydra.run.dir", problem, "Give this run a folder of its own, or resume=auto")
    return True


def _variables(plan: Plan) -> dict[str, str]:
    """NCCL's settings for the profile's network, and its log, where the run spans nodes.

    On a processor: threads that wait let others run. Spinning for each other they would take ten times as long on a
    machine that has anything else to do.
    """
    hw = plan.config.hw
    if hw.device is not Device.cuda:
        return {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    if hw.nodes < 2:
        return {}
    return network.environment(hw.network, hw.nodes) | network.logging(plan.run_dir)


def _job_file(job: Job) -> Path:
    return job.folder / "job.json"


def _prepare(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / _OUTCOME).unlink(missing_ok=True)
    _check_checkpoints(job)
    if not any((job.folder / "checkpoints").glob("*.pt")):  # killed before its first checkpoint: it begins anew
        (job.folder / progress_log.FILE).unlink(missing_ok=True)
    job.write(_job_file(job))


def _check_checkpoints(job: Job) -> None:
    """Refuse another run's checkpoint by the facts beside it, before anything is started; a rank looks inside."""
    for path in sorted((job.folder / "checkpoints").glob("step-*.json"))[-1:]:
        try:
            found = json.loads(path.read_text())["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        difference = job.difference(found)
        if difference is not None:
            raise UserError("resume", f"{path.with_suffix('.pt').name} {difference}", ANOTHER)


class _Follower:
    """Hands what rank 0 writes to the display and to the live log."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._tail = progress_log.Follower(job.folder / progress_log.FILE)
        self.history = progress_log.History()
        self._started_at = 0.0
        for entry in self._tail.new():  # of the lives before
            self.history.add(entry)

    def look(self) -> None:
        """Take what is new."""
        job = self._job
        for entry in self._tail.new():
            self.history.add(entry)
            if isinstance(entry, progress_log.Started):
                self._started_at = entry.at
                self._progress.phase("train", job.total_steps * job.global_batch, unit="samples")
            elif self.history.lines:
                line = self.history.lines[-1]
                last: dict[str, Any] = {it.metric: it.value for it in self.history.evaluations[-1:]}
                self._progress.update(
                    TrainLive(
                        elapsed_s=entry.at - self._started_at,
                        completed=line.step * job.global_batch,
                        epoch=line.epoch,
                        samples_per_second=line.samples_per_second,
                        loss=line.loss,
                        learning_rate=line.learning_rate,
                        **last,
                    )
                )


def _outcome(job: Job) -> dict[str, Any] | None:
    try:
        value = json.loads((job.folder / _OUTCOME).read_text())
    except (OSError, ValueError):
        return None
    return dict(value)


def _metrics(plan: Plan, job: Job, history: progress_log.History, outcome: dict[str, Any] | None) -> dict[str, float]:
    metrics = history.metrics()
    rate = metrics.get("train_samples_per_second")
    if rate is not None:
        metrics["train_samples_per_second_per_process"] = rate / job.world
        metrics["epoch_s"] = job.train_samples / rate
        tokens = kind.of(plan.config.model).sample_tokens(plan)
        if tokens is not None:
            metrics["train_tokens_per_second"] = rate * tokens
        mfu = _utilization(plan, job, rate)
        if mfu is not None:
            metrics["model_flops_utilization_percent"] = mfu
    if outcome is not None:
        start, end = outcome["window_ns"]
        run_s = (end - start) / 1e9
        steps = outcome["step"] - outcome["first_step"]
        metrics |= {
            "completed": float(steps * job.global_batch),
            "steps": float(outcome["step"]),
            "epochs": outcome["step"] / job.steps_per_epoch,
            "run_s": run_s,
            "run_samples_per_second": steps * job.global_batch / run_s if run_s > 0 else 0.0,
            "peak_memory_mib": outcome["peak_memory_mib"],
        }
        if outcome["status"] == "reached":
            metrics["time_to_train_minutes"] = run_s / 60
    return metrics


def _utilization(plan: Plan, job: Job, rate: float) -> float | None:
    """Model FLOP/s utilization in percent: the network's own operations against the profile's dense peak."""
    flops, hw = kind.of(plan.config.model).sample_flops(plan), plan.config.hw
    peak = hw.peak_tflops.get("bf16" if job.precision == "bf16" else "tf32")
    if flops is None or peak is None or hw.device is not Device.cuda:
        return None
    return float(100 * rate / job.world * flops / (peak * 1e12))


def _phases(began_ns: int, outcome: dict[str, Any] | None) -> dict[str, float]:
    now = time.perf_counter_ns()
    if outcome is None:
        return {"train_s": (now - began_ns) / 1e9}
    start, end = outcome["window_ns"]
    return {
        "init_s": (start - began_ns) / 1e9,
        "train_s": (end - start) / 1e9 - outcome["eval_s"],
        "evaluate_s": outcome["eval_s"],
        "stop_s": (now - end) / 1e9,
    }


def _score(job: Job, history: progress_log.History) -> Score | None:
    if not history.evaluations:
        return None
    last = history.evaluations[-1]
    return Score({last.metric: last.value}, job.eval_samples)


def _record(job: Job, history: progress_log.History, outcome: dict[str, Any] | None) -> dict[str, Any]:
    """``training`` in ``result.json``."""
    return {
        "status": outcome["status"] if outcome else "broken",
        "step": outcome["step"] if outcome else (history.lines[-1].step if history.lines else 0),
        "first_step": outcome["first_step"] if outcome else 0,
        "lives": history.lives,
        "ranks": job.world,
        "global_batch_size": job.global_batch,
        "train_samples": job.train_samples,
        "eval_samples": job.eval_samples,
        "steps_per_epoch": job.steps_per_epoch,
        "speed_only": job.steps is not None,
        "evaluations": [
            {"epoch": it.epoch, "step": it.step, it.metric: it.value, "eval_s": it.eval_s, "run_s": it.run_s}
            for it in history.evaluations
        ],
    }
