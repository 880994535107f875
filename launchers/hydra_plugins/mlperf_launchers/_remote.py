"""A sweep on other machines, from Hydra's side: its jobs as plain data, checked before anything is queued, and back.

A job is described as the command that a person would type on the node: the application, then the overrides as a list
of words. Nothing is pickled, so that what runs can be read, repeated by hand, and taken over by another process or
version.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from hydra_plugins.mlperf_launchers import _job, _summary
from hydra_plugins.mlperf_launchers._book import Book
from hydra_plugins.mlperf_launchers._chosen import refuse_launchers
from hydra_plugins.mlperf_launchers._cluster import Cluster, JobSpec, Need, Unreachable, connect, quoted
from hydra_plugins.mlperf_launchers._driver import Driver, render_all
from hydra_plugins.mlperf_launchers._files import RETURN
from hydra_plugins.mlperf_launchers._job import Job
from hydra_plugins.mlperf_launchers._ledger import Entry, Ledger
from hydra_plugins.mlperf_launchers._outcome import Outcome
from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf, Resources, RunOn
from hydra_plugins.mlperf_launchers._summary import Row
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mlperf_exp.config import Config
from mlperf_exp.errors import Interrupted, InvalidResult, RunFailed, UserError

# Of the keys under hydra: those that say how the sweep is run, which on a node is over.
_OF_THE_SWEEP = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.mode", "hydra.sweep",
                 "hydra.run", "hydra.callbacks", "hydra/callbacks")  # fmt: skip
_FACTS = ("model.name", "model.path", "model.weights", "dataset.name", "dataset.path", "hw.name", "hw.gpu", "hw.device",
          "hw.network", "backend.name", "scenario.name", "tracking.enabled", "tracking.uri",
          "tracking.experiment", "tracking.interval_s", "tracking.timeout_s")  # fmt: skip


def settings_of(config: DictConfig) -> RemoteLauncherConf:
    """The launcher's keys as their dataclass."""
    settings = OmegaConf.to_object(config.hydra.launcher)
    assert isinstance(settings, RemoteLauncherConf)
    return settings


def check(settings: RemoteLauncherConf) -> None:
    """Refuse values that no sweep can run with.

    Raises:
        UserError: naming the key.
    """
    ranges: dict[str, tuple[float | None, float]] = {
        "max_parallel": (settings.max_parallel, 1),
        "retries.max": (settings.retries.max, 0),
        "grace_s": (settings.grace_s, 0),
        "unknown_grace_s": (settings.unknown_grace_s, 0),
        "resources.nodes": (settings.resources.nodes, 1),
        "resources.gpus_per_node": (settings.resources.gpus_per_node, 0),
        "resources.cpus": (settings.resources.cpus, 1),
    }
    for key, (value, least) in ranges.items():
        if value is not None and not value >= least:
            raise UserError(f"hydra.launcher.{key}", f"{value:g} is too small", f"Give {least:g} or more")
    limits = {
        "timeout_s": settings.timeout_s,
        "queue_timeout_s": settings.queue_timeout_s,
        "resources.memory_gib": settings.resources.memory_gib,
    }
    for key, value in limits.items():
        if value is not None and not value > 0:
            raise UserError(f"hydra.launcher.{key}", f"{value:g}", "Give more than 0, or null for no limit")
    for name in [*settings.env, *settings.secrets]:
        if not name or "=" in name or "\0" in name + settings.env.get(name, ""):
            raise UserError("hydra.launcher.env", f"{name!r} cannot be an environment variable", "Name it otherwise")
    for name in set(settings.env) & set(settings.secrets):
        raise UserError("hydra.launcher.secrets", f"{name} is in hydra.launcher.env too", "Leave it out there")


def launch(
    name: str, context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> Sequence[JobReturn]:
    """Run one batch on the system of the launcher ``name``; see :class:`_launcher.RemoteLauncher`."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    settings = settings_of(config)
    refuse_launchers(config, context, job_overrides)
    jobs = [_job.compose(config, context, texts, first + i, settings.env) for i, texts in enumerate(job_overrides)]
    sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()
    try:
        specs = [spec_of(job, config, settings, texts) for job, texts in zip(jobs, job_overrides, strict=True)]
        cluster = connect(name, settings)
        with contextlib.closing(cluster):
            return _launch(name, cluster, settings, config, jobs, specs, sweep_dir)
    finally:
        for folder in [*(job.folder for job in jobs), sweep_dir]:  # refused, or a dry run: leave nothing behind
            with contextlib.suppress(OSError):
                folder.rmdir()


def _launch(
    name: str,
    cluster: Cluster,
    settings: RemoteLauncherConf,
    config: DictConfig,
    jobs: Sequence[Job],
    specs: Sequence[JobSpec],
    sweep_dir: Path,
) -> Sequence[JobReturn]:
    container: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True, enum_to_str=True)
    ledger = Ledger(sweep_dir, name, container, [Entry(spec) for spec in specs])
    if settings.dryrun:
        print(render_all(cluster, ledger.entries, ledger), end="")
        return []
    try:
        cluster.preflight(specs)
    except Unreachable as error:
        problem = f"{name} does not answer: {error}"
        raise UserError("hydra/launcher", problem, "See that it runs, and try again") from None
    results = [_returned(job, outcome) for job, outcome in zip(jobs, drive(cluster, settings, ledger), strict=True)]
    if any(isinstance(_job.error_of(result), RunFailed) for result in results):
        for result in results:  # Hydra goes by the first error: one that failed must not hide behind an invalid one
            if isinstance(_job.error_of(result), InvalidResult):
                result.return_value = RunFailed(str(_job.error_of(result)))
    return results


def drive(cluster: Cluster, settings: RemoteLauncherConf, ledger: Ledger, cancel: bool = False) -> list[Outcome]:
    """Run, or go on with, the jobs of a ledger; show the summary.

    Raises:
        UserError: another process does that already.
        Interrupted: after every job has been cancelled.
    """
    rows = {entry.spec.number: Row(entry.spec.number, entry.spec.overrides) for entry in ledger.entries}
    ledger.folder.mkdir(parents=True, exist_ok=True)
    with ledger.driven() as alone:
        if not alone:
            raise UserError(
                "FOLDER", f"another process drives the jobs of {ledger.folder}", "Use list to look, cancel to end them"
            )
        ledger.want_cancel(False)
        ledger.save()
        book = Book(ledger, settings.max_parallel)
        driver = Driver(cluster, settings, ledger, book.ended)
        if cancel:
            driver.interrupt("cancelling")
        try:
            outcomes = driver.run()
        finally:
            book.close(driver.interrupted)
    for outcome in outcomes:
        row = rows[outcome.number]
        if outcome.folder is None:
            row.status = "not started"
            continue
        row.folder, row.seconds = outcome.folder, outcome.seconds
        row.result = _object(outcome.folder / "result.json")
        row.settle(outcome.error)
    _summary.show(list(rows.values()), ledger.folder)
    if driver.interrupted:
        raise Interrupted(_summary.interruption(list(rows.values()), ledger.folder))
    return outcomes


def _object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def spec_of(job: Job, config: DictConfig, settings: RemoteLauncherConf, overrides: Sequence[str]) -> JobSpec:
    """The job as plain data.

    Raises:
        UserError: the run would be refused on the node.
    """
    task = job.config
    facts: dict[str, Any] = {}
    if OmegaConf.get_type(task) is Config:
        from mlperf_exp.plan import make_plan

        make_plan(_task_config(job), job.folder)
    for key in _FACTS:
        value = OmegaConf.select(task, key, throw_on_missing=False)
        if value is not None:
            facts[key] = getattr(value, "name", value)
    if application() == ("-m", "mlperf_exp"):  # its jobs are runs: they have a record, and a place in MLflow
        facts["sweep"] = str(Path(str(config.hydra.sweep.dir)).absolute())
    return JobSpec(
        number=job.number,
        overrides=job.overrides,
        arguments=(*application(), *_flags(), *_hydra_overrides(config), *overrides, *_own(job)),
        folder=job.folder,
        need=need_of(task, settings.resources),
        run_on=settings.run_on or _run_on(task),
        facts=facts,
    )


def need_of(task: DictConfig, resources: Resources) -> Need:
    """What the job wants: as the launcher's keys say or, where they are silent, its hardware profile."""

    def profile(key: str) -> Any:
        return OmegaConf.select(task, f"hw.{key}", throw_on_missing=False)

    def either(own: Any, key: str) -> Any:
        return profile(key) if own is None else own

    return Need(
        nodes=either(resources.nodes, "nodes") or 1,
        gpus_per_node=either(resources.gpus_per_node, "gpus_per_node") or 0,
        gpu_type=resources.gpu_type,
        gpu=profile("gpu"),
        cpus=either(resources.cpus, "cpus_per_node"),
        memory_gib=either(resources.memory_gib, "host_memory_gib"),
    )


def application() -> tuple[str, ...]:
    """What stands behind the interpreter: the application that was started here."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return "-m", str(spec.name).removesuffix(".__main__")
    path = Path(sys.argv[0])
    return ("-m", "mlperf_exp") if path.name == "mlperf-exp" else (str(path.absolute()),)


def _flags() -> list[str]:
    args, _ = get_args_parser().parse_known_args(sys.argv[1:])
    flags: list[str] = []
    for name in ("config_name", "config_path", "config_dir"):
        value: str | None = getattr(args, name)
        if value is not None:
            place = value if name == "config_name" else str(Path(value).absolute())
            flags += [f"--{name.replace('_', '-')}", place]
    return flags


def _hydra_overrides(config: DictConfig) -> list[str]:
    # Unresolved: in an override's text, ${...} is meant for the job.
    given: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    keys = [text.lstrip("+~").partition("=")[0].partition("@")[0] for text in given]
    return [
        text
        for text, key in zip(given, keys, strict=True)
        if not any(key == own or key.startswith((f"{own}.", f"{own}/")) for own in _OF_THE_SWEEP)
    ]


def _own(job: Job) -> list[str]:
    return [
        "hydra.mode=RUN",  # also where a file among the overrides chooses a launcher
        f"hydra.job.num={job.number}",
        f"hydra.job.id={quoted(str(job.number))}",
        "+hydra.callbacks.keep_return._target_=hydra_plugins.mlperf_launchers._return.KeepReturn",
    ]


def _run_on(task: DictConfig) -> RunOn:
    scenario = OmegaConf.select(task, "scenario.name", throw_on_missing=False)
    return RunOn.each if getattr(scenario, "name", scenario) == "train" else RunOn.first


def _task_config(job: Job) -> DictConfig:
    task = copy.deepcopy(job.config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def _returned(job: Job, outcome: Outcome) -> JobReturn:
    error = outcome.error
    with read_write(job.config), open_dict(job.config):
        hydra = job.config.pop("hydra")  # taken out, not copied: nobody needs the job any more
    result = JobReturn(list(job.overrides), job.config, None, str(Path.cwd()), hydra.job.name)
    result.status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    result.return_value = _value(outcome.folder or job.folder) if error is None else error
    return result


def _value(folder: Path) -> Any:
    for name in (RETURN, "result.json"):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / name).read_text(encoding="utf-8"))
    return None
