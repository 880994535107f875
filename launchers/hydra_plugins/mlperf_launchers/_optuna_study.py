"""A search's trials in the sweep's folder: Optuna's journal, ``optuna.json`` for others, the table at the end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import optuna
from hydra_plugins.mlperf_launchers._job import describe
from hydra_plugins.mlperf_launchers._optuna_config import OptunaSweeperConf, Sampler
from hydra_plugins.mlperf_launchers._optuna_space import Space
from optuna.distributions import distribution_to_json
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from mlperf_exp.compare.metrics import BY_NAME
from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.sweep.record import SEARCH

_JOURNAL = "optuna.journal"


def open_study(folder: Path, settings: OptunaSweeperConf, space: Space) -> optuna.Study:
    """The study of this folder, made where there is none.

    Raises:
        UserError: the folder holds a search for something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = str(folder / _JOURNAL)
    storage = JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
    ways = ["maximize" if BY_NAME[name].better > 0 else "minimize" for name in settings.objective]
    wanted = {
        "objective": list(settings.objective),
        "require": settings.require.name,
        "constraints": dict(settings.constraints),
        "short": list(settings.short),
        "fixed": list(space.fixed),
        "searched": {key: distribution_to_json(value) for key, value in space.searched.items()},
    }
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    if folder.name not in names:
        study = optuna.create_study(storage=storage, study_name=folder.name, directions=ways)
        study.set_user_attr("wanted", wanted)
    else:
        study = optuna.load_study(study_name=folder.name, storage=storage)
        before = study.user_attrs.get("wanted", {})
        other = [key for key, value in wanted.items() if before.get(key) != value]
        if other:
            raise UserError(
                "hydra.sweep.dir",
                f"{folder} holds another search: {', '.join(other)} differ",
                "Give this one a folder of its own, or the same settings to go on",
            )
    study.sampler = _sampler(settings, len(study.get_trials(deepcopy=False)))
    return study


def _sampler(settings: OptunaSweeperConf, trials: int) -> optuna.samplers.BaseSampler:
    seed = settings.seed + trials  # one that goes on must not draw the first settings again
    if settings.sampler is Sampler.random:
        return optuna.samplers.RandomSampler(seed)
    if settings.sampler is Sampler.nsgaii:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, settings.trials // 4))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, min(10, settings.trials // 3)))


def best(study: optuna.Study) -> list[int]:
    """The best trial's number, or those of the Pareto front; none where none kept all constraints."""
    feasible = [trial for trial in study.best_trials if all(amount <= 0 for amount in trial.constraints.values())]
    return sorted({trial.number for trial in feasible if trial.user_attrs.get("jobs")})


def write(folder: Path, settings: OptunaSweeperConf, study: optuna.Study) -> None:
    """Write ``optuna.json``; a full disk must not end the search."""
    trials = [_row(trial) for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("jobs")]
    value: dict[str, Any] = {
        "schema": 1,
        "objective": {name: BY_NAME[name].better for name in settings.objective},
        "require": settings.require.name,
        "constraints": dict(settings.constraints),
        "trials": trials,
        "best": best(study),
    }
    with contextlib.suppress(OSError):
        write_json(folder / SEARCH, value)


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    attrs = trial.user_attrs
    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "failed" if "failure" in attrs else "pruned"}
    return {
        "number": trial.number,
        "params": trial.params,
        "state": states.get(trial.state, "running" if trial.state is TrialState.RUNNING else "given up"),
        "values": trial.values if trial.state is TrialState.COMPLETE else None,
        "short": attrs.get("short"),
        "feasible": all(amount <= 0 for amount in trial.constraints.values()),
        "why": attrs.get("failure") or attrs.get("why") or "",
        "jobs": attrs["jobs"],
    }


def show(settings: OptunaSweeperConf, study: optuna.Study, folder: Path) -> None:
    """Print the trials, the best marked."""
    write(folder, settings, study)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("", "Trial", "Settings", *(BY_NAME[name].label for name in settings.objective), "Outcome"):
        table.add_column(name, overflow="fold")
    marked = best(study)
    for trial in study.get_trials(deepcopy=False):
        if not trial.user_attrs.get("jobs") or trial.state is TrialState.FAIL:
            continue
        row = _row(trial)
        shown = [f"{value:,.6g}" for value in row["values"] or row["short"] or ()]
        shown += ["–"] * (len(settings.objective) - len(shown))
        outcome = row["state"] if row["feasible"] or row["state"] == "failed" else f"{row['state']}, does not count"
        said = f"{outcome}: {row['why']}" if row["why"] else outcome
        params = describe([f"{key}={value}" for key, value in trial.params.items()])
        table.add_row("★" if trial.number in marked else "", str(trial.number), params, *shown, said)
    with contextlib.suppress(OSError):
        console = Console(highlight=False)
        console.print()
        console.print(table)
        console.print(_conclusion(settings, marked))
        console.print(f"Sweep  {folder}", style="dim", soft_wrap=True)


def _conclusion(settings: OptunaSweeperConf, marked: list[int]) -> str:
    if not marked:
        return "No trial kept all constraints."
    names = ", ".join(settings.objective)
    numbers = ", ".join(str(number) for number in marked)
    return f"★ Best by {names}: trial {numbers}" if len(marked) == 1 else f"★ Front of {names}: trials {numbers}"
