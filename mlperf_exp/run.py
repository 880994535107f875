"""The main path: Config -> Plan -> Measurement -> Verdict -> Result, in a run's folder, in MLflow, on a page."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlperf_exp import earlier, environment, hashes, measure, network, repeats, running, signals
from mlperf_exp.config import Config, OpenaiBackend, SimulatedBackend, Training
from mlperf_exp.errors import Interrupted, InvalidResult, RunFailed, UserError
from mlperf_exp.files import write_atomic, write_json
from mlperf_exp.inputs import Inputs, load
from mlperf_exp.judge import judge
from mlperf_exp.messages import EngineStart, Measurement, Plan, Verdict
from mlperf_exp.plan import make_plan
from mlperf_exp.progress import Progress
from mlperf_exp.report import later
from mlperf_exp.report.finish import report
from mlperf_exp.search.state import settled, unfinished
from mlperf_exp.telemetry import of_run
from mlperf_exp.telemetry.sampler import Sampler
from mlperf_exp.track.tracker import Tracker, go_on

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Do one run and return its result, which is then also in ``result.json``, MLflow and the report.

    Raises:
        UserError: the run was refused before it started.
        RunFailed, Interrupted, InvalidResult: after all that was finished has been kept.
    """
    start = Start.now()
    plan = make_plan(cfg, Path(HydraConfig.get().runtime.output_dir))
    if isinstance(plan.config.scenario, Training) and not _leads(plan):
        return {}
    with signals.handled(_interrupt), _only_run_in(plan):
        write_atomic(plan.run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
        write_atomic(plan.run_dir / environment.PINS, environment.requirements())
        inputs = load(plan)
        plan = replace(plan, derived=(*plan.derived, *inputs.derived))
        identity = hashes.identity(plan, inputs)
        plan, found, inputs = earlier.planned(plan, inputs)
        tracker = Tracker.start(
            plan.run_dir,
            plan.config.tracking,
            run_id(plan.run_dir),
            run_name(plan.config),
            tags(plan) | identity,
            plain(plan.config) | {"engine": plan.engine},
            _sweep_dir(),
        )
        without = [pid for pid in (tracker.pid, later.pid()) if pid]
        sampler = Sampler.start(plan.run_dir, plan.config.telemetry, of_run.gpus(plan), without)
        with sampler, Progress(plan) as progress:
            start.phases["prepare_s"] = start.elapsed_s
            measurement = _measure(plan, inputs, progress)
        measurement = _with_accuracy(settled(plan, measurement), inputs, measurement, found)
        plan = settled(plan, measurement)
        measurement = of_run.add(plan, measurement, sampler)
        verdict = judge(plan, measurement)
        result = make_result(plan, inputs, measurement, verdict, start, identity)
        _keep(plan, result, tracker, start)
    _show(plan, result)
    _raise_for(plan, result)
    return result


@dataclass(frozen=True, slots=True)
class Start:
    """When the run began, by two clocks, and the phases measured so far."""

    at: datetime
    counter: float
    phases: dict[str, float]

    @classmethod
    def now(cls) -> Start:
        """The moment at which the process itself began, where the system tells, else this one."""
        age = _process_age_s()
        moment = datetime.now(UTC).timestamp() - age
        return cls(datetime.fromtimestamp(moment, UTC), time.perf_counter() - age, {})

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.counter


_jobs_in_process = 0


def _process_age_s() -> float:
    """Seconds since this process started; 0 for a second job in one process, and where /proc does not tell."""
    global _jobs_in_process
    _jobs_in_process += 1
    if _jobs_in_process > 1:
        return 0.0
    try:
        import psutil

        return max(0.0, time.time() - psutil.Process().create_time())
    except (ImportError, OSError):
        return 0.0


def _leads(plan: Plan) -> bool:
    """Whether this process keeps the training's record; one on another node does that node's part first."""
    from mlperf_exp.train.nodes import place

    here = place(plan.config.hw)
    if here.first_on_node and not here.first:
        from mlperf_exp.train.session import follow

        with signals.handled(_interrupt):
            follow(plan)
    if not here.first_on_node:  # the others of a node leave no trace
        with contextlib.suppress(OSError):
            (plan.run_dir / "run.log").unlink(missing_ok=True)
            plan.run_dir.rmdir()
    return here.first


def _measure(plan: Plan, inputs: Inputs, progress: Progress) -> Measurement:
    try:
        return on_its_network(plan, _stage(plan)(plan, inputs, progress))
    except UserError:
        raise
    except OSError as error:
        return Measurement({}, {}, failure=f"{error.filename or 'a file'}: {error.strerror}")
    except Exception as error:  # a fault of the program's own: kept as a failed run, with its traceback in the log
        log.exception("the measurement broke")
        return Measurement({}, {}, failure=f"{type(error).__name__}: {error} (traceback in {plan.run_dir / 'run.log'})")


def _stage(plan: Plan) -> Callable[[Plan, Inputs, Progress], Measurement]:
    """What makes the plan's measurement."""
    if isinstance(plan.config.scenario, Training):
        from mlperf_exp.train.session import train

        return train
    from mlperf_exp.bench import bench

    return bench


def _with_accuracy(plan: Plan, inputs: Inputs, measurement: Measurement, found: earlier.Earlier | None) -> Measurement:
    """The measurement with an earlier run's score; one of its own is kept for later runs."""
    if found is not None:
        return earlier.taken_over(measurement, found)
    try:
        earlier.keep(plan, inputs, measurement, run_id(plan.run_dir))
    except OSError as error:
        said = f"The accuracy result could not be kept for later runs: {error.filename}: {error.strerror}"
        return replace(measurement, warnings=(*measurement.warnings, said))
    return measurement


def on_its_network(plan: Plan, measurement: Measurement) -> Measurement:
    """The measurement; a failed one where NCCL ran between the nodes over another network than the profile's."""
    config = plan.config
    here = not isinstance(config.backend, OpenaiBackend | SimulatedBackend)  # servers of others log elsewhere
    if measurement.failure or config.hw.nodes < 2 or not here or not config.require_network:
        return measurement
    try:
        network.verify(measurement.engine.run_dir if measurement.engine else plan.run_dir, config.hw)
    except RunFailed as error:
        return replace(measurement, failure=str(error))
    return measurement


def run_id(folder: Path) -> str:
    """A name for the run in this folder that no other run has: its folder's, with the sweep's before it."""
    short = folder.name.replace(".", "").isdigit()  # 3, or 3.2 for a second attempt
    return f"{folder.parent.name}-{folder.name}" if short else folder.name


def _sweep_dir() -> Path | None:
    """The folder of the sweep that this run is a job of."""
    hydra = HydraConfig.get()
    return Path(str(hydra.sweep.dir)).absolute() if hydra.mode is RunMode.MULTIRUN else None


def run_name(config: Config) -> str:
    """The name that people read."""
    return config.name or f"{config.model.name} {config.hw.name} {config.scenario.name.name}"


def tags(plan: Plan) -> dict[str, str]:
    """What MLflow's users filter by."""
    config = plan.config
    return {
        "model": config.model.name,
        "hw": config.hw.name,
        "scenario": config.scenario.name.name,
        "backend": config.backend.name,
        "division": config.division.name,
        "dataset": config.dataset.name,
    }


def plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON values."""
    value = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(value, dict)
    return {str(key): item for key, item in value.items()}


def make_result(
    plan: Plan,
    inputs: Inputs,
    measurement: Measurement,
    verdict: Verdict,
    start: Start,
    identity: dict[str, str],
) -> dict[str, Any]:
    """The record of a run; see ``docs/architecture.md`` for its fields."""
    total_s = start.elapsed_s
    shared_s = measurement.engine.seconds if measurement.engine and measurement.engine.reused else 0.0
    training = isinstance(plan.config.scenario, Training)
    full = None if training else plan.config.model.performance_samples or len(inputs.samples)
    status = "interrupted" if measurement.interrupted else "failed" if measurement.failure else "finished"
    return {
        "schema": 1,
        "run": {
            "id": run_id(plan.run_dir),
            "name": run_name(plan.config),
            **identity,
            "status": status,
            "error": measurement.failure,
            "command": ["python", *sys.orig_argv[1:]],
            "overrides": list(HydraConfig.get().overrides.task),
            "cwd": str(Path.cwd()),
            "started_at": start.at.isoformat(timespec="milliseconds"),
            "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **_engine(plan, measurement.engine),
        },
        "plan": {
            "config": plain(plan.config),
            "engine": plan.engine,
            "modes": list(plan.modes),
            "derived": [asdict(item) for item in plan.derived],
            "warnings": list(plan.warnings),
        },
        "environment": environment.describe(),
        "verdict": verdict.as_dict(),
        "metrics": measurement.metrics
        | measure.honest(measurement.metrics | repeats.completed(measurement), total_s, full, shared_s),
        "phases": {**start.phases, **measurement.phases, "total_s": total_s},
        "tests": {
            test.mode: {
                "loadgen": test.loadgen,
                "issued": test.issued,
                "completed": test.completed,
                "errors": test.errors,
                "first_error": test.first_error,
                "wall_s": test.wall_s,
                "window_ns": test.window_ns,
            }
            for test in measurement.tests
        },
        "telemetry": measurement.telemetry,
        **({"search": measurement.search} if measurement.search else {}),
        **({"training": measurement.training} if measurement.training else {}),
        **({"repeats": summary} if (summary := repeats.summary(measurement)) else {}),
        "artifacts": [],
    }


def _engine(plan: Plan, engine: EngineStart | None) -> dict[str, Any]:
    """Which run started the system, how long that took, and where that run keeps what the engine printed."""
    if engine is None:
        return {}
    printed = engine.run_dir / "engine.log"
    return {
        "engine_started_by": run_id(engine.run_dir),
        "engine_start_s": engine.seconds,
        "engine_log": os.path.relpath(printed, plan.run_dir) if printed.exists() else None,
    }


def _keep(plan: Plan, result: dict[str, Any], tracker: Tracker, start: Start) -> None:
    """The record first; then the report, which can be made again from it, and MLflow.

    Runs that share a process leave both to others, so that the next one can begin.
    """
    write_json(plan.run_dir / "result.json", result)
    if running.shared() and tracker.by_another:
        result["run"]["mlflow_run_id"] = tracker.run_id
        result["phases"]["track_s"], result["phases"]["total_s"] = 0.0, start.elapsed_s
        write_json(plan.run_dir / "result.json", result)
        later.hand_over(plan.run_dir)
        return
    report(plan.run_dir, result)
    outcome = tracker.finish(plan.config.tracking.timeout_s)
    if not outcome.ok:
        result["verdict"]["warnings"] = [*result["verdict"]["warnings"], outcome.message]
    result["run"]["mlflow_run_id"] = outcome.mlflow_run_id
    result["phases"]["track_s"] = outcome.seconds
    result["phases"]["total_s"] = start.elapsed_s
    report(plan.run_dir, result)  # once more, now that the time of tracking is known


def _training_unfinished(plan: Plan) -> bool:
    from mlperf_exp.train.session import unfinished as to_be_continued

    return to_be_continued(plan)


def _show(plan: Plan, result: dict[str, Any]) -> None:
    if not plan.config.progress:
        return
    from rich.console import Console

    from mlperf_exp.report.terminal import summary_table

    with contextlib.suppress(OSError):  # the terminal may be gone
        Console().print(summary_table(result, plan.run_dir))


def _raise_for(plan: Plan, result: dict[str, Any]) -> None:
    error, folder = result["run"]["error"], plan.run_dir
    if result["run"]["status"] == "interrupted":
        raise Interrupted(f"interrupted; what was finished is in {folder}")
    if result["run"]["status"] == "failed":
        raise RunFailed(f"the run failed: {error}; what was finished is in {folder}")
    if plan.config.fail_on_invalid and not result["verdict"]["valid"]:
        raise InvalidResult(f"the run is not valid: {result['verdict']['reasons'][0]}")


def _interrupt(number: int, _: object) -> None:
    """The first signal interrupts; while the run is then put away, further ones are ignored."""
    for other in signals.ends():
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(f"interrupted by {signal.Signals(number).name}")


@contextlib.contextmanager
def _only_run_in(plan: Plan) -> Iterator[None]:
    """Hold the folder: two runs in one, or a run over another's result, are refused.

    A search or a training that was interrupted left a result, and goes on in its folder.
    """
    folder = plan.run_dir
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "hydra.run.dir", f"another run is writing to {folder}", "Give this one a folder of its own"
            ) from None
        if unfinished(plan) or (isinstance(plan.config.scenario, Training) and _training_unfinished(plan)):
            (folder / "result.json").unlink(missing_ok=True)
            go_on(folder)
        elif (folder / "result.json").exists():
            raise UserError("hydra.run.dir", f"{folder} already holds a result", "Give this run a folder of its own")
        yield
