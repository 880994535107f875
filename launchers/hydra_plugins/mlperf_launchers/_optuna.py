"""The core of the sweeper ``optuna``: ask for settings, have the launcher run them, tell what came of it.

All trials are in ``optuna.journal`` in the sweep's folder, which is Optuna's own format, and for everybody else in
``optuna.json``. Each run is a job of the sweep: it goes through the launcher, shares engine starts, and stands in
``sweep.json`` and MLflow as any other. A search that was ended in the middle goes on where it was: runs that finished
are taken from the folder, settings whose runs did not are tried first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra_plugins.mlperf_launchers import _optuna_study
from hydra_plugins.mlperf_launchers._job import describe
from hydra_plugins.mlperf_launchers._optuna_config import OptunaSweeperConf
from hydra_plugins.mlperf_launchers._optuna_outcome import Outcome, beats, check_figures, outcome
from hydra_plugins.mlperf_launchers._optuna_space import Space, read
from hydra_plugins.mlperf_launchers._process import say
from hydra_plugins.mlperf_launchers.local import LocalLauncher
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from mlperf_exp.errors import RunFailed, UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers.optuna_sweeper import OptunaSweeper

_REPEATS = 10  # so often the sampler may ask for settings that were tried, before others are drawn


def settings_of(config: DictConfig) -> OptunaSweeperConf:
    """The sweeper's keys as their dataclass."""
    settings = OmegaConf.to_object(config.hydra.sweeper)
    assert isinstance(settings, OptunaSweeperConf)
    return settings


def check(settings: OptunaSweeperConf) -> None:
    """Refuse values that no search can run with.

    Raises:
        UserError: naming the key.
    """
    for key in ("trials", "batch", "max_failures"):
        if getattr(settings, key) < 1:
            raise UserError(f"hydra.sweeper.{key}", f"{getattr(settings, key)} is too small", "Give 1 or more")
    check_figures(settings)


def search(sweeper: OptunaSweeper, arguments: Sequence[str]) -> None:
    """The whole search; see :meth:`OptunaSweeper.sweep`."""
    assert sweeper.config is not None
    assert sweeper.hydra_context is not None
    settings = settings_of(sweeper.config)
    space = read(arguments, settings.params, sweeper.hydra_context.config_loader)
    folder = Path(str(sweeper.config.hydra.sweep.dir)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, folder / "multirun.yaml")
    short = [text.lstrip("+~").partition("=")[0] for text in settings.short]
    local = sweeper.launcher if isinstance(sweeper.launcher, LocalLauncher) else None
    if local is not None:
        local.open_for = frozenset([*space.searched, *short])
    running = Search(sweeper, settings, space, folder, takes_earlier=local is not None)
    try:
        running.run()
    finally:
        if local is not None:
            local.finish()
    running.conclude()


@dataclass(slots=True)
class Search:
    """A search that runs. ``takes_earlier``: the launcher knows finished runs in the sweep's folder again."""

    sweeper: OptunaSweeper
    settings: OptunaSweeperConf
    space: Space
    folder: Path
    takes_earlier: bool
    study: Any = None
    known: dict[tuple[Any, ...], int] = field(default_factory=dict)  # settings -> the trial that tried them
    jobs: int = 0
    failures: int = 0
    last_failure: str = ""

    def run(self) -> None:
        """Try settings until there are enough of them, or no more."""
        self.study = _optuna_study.open_study(self.folder, self.settings, self.space)
        self._take_up()
        while len(self.known) < self.settings.trials and (self.space.size is None or len(self.known) < self.space.size):
            trials = self._ask(min(self.settings.batch, self.settings.trials - len(self.known)))
            if not trials:
                return
            self._try(trials)
            _optuna_study.write(self.folder, self.settings, self.study)

    def conclude(self) -> None:
        """Show the trials and name the best.

        Raises:
            RunFailed: not one run gave figures.
        """
        _optuna_study.show(self.settings, self.study, self.folder)
        if not any(trial.state is TrialState.COMPLETE for trial in self.study.trials) and self.last_failure:
            raise RunFailed(f"the search has no figures: no run finished; the last failure: {self.last_failure}")

    def _take_up(self) -> None:
        """After an earlier start: its settled trials; those that were being tried come first again."""
        settled: list[FrozenTrial] = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)
            elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.user_attrs.get("jobs"):
                self.known[_key(trial.params)] = trial.number
                settled.append(trial)
                self.jobs = max(self.jobs, *(number + 1 for number in trial.user_attrs["jobs"].values()))
        if not settled or not self.takes_earlier:
            return
        self.jobs = 0  # all is in the folder: the launcher finds each run again, and the record becomes whole
        stages = [(trial, stage) for trial in settled for stage in trial.user_attrs["jobs"]]
        found = self._launch([self._overrides(trial.params, stage) for trial, stage in stages])
        for (trial, stage), one in zip(stages, found, strict=True):
            now = outcome(self.settings, one, stage == "short")
            if trial.user_attrs.get("failure") and now.failure is None and stage == "whole":  # tried again, and well
                self.study.add_trial(
                    create_trial(
                        values=list(now.values),
                        params=trial.params,
                        distributions=dict(self.space.searched),
                        constraints={"failed": 0.0, **now.broken},
                        user_attrs={"jobs": trial.user_attrs["jobs"], "why": now.why},
                    )
                )

    def _ask(self, count: int) -> list[Trial]:
        """New settings; for those that were tried the sampler is told what came of them."""
        trials: list[Trial] = []
        repeats = 0
        while len(trials) < count and (self.space.size is None or len(self.known) < self.space.size):
            trial = self.study.ask(dict(self.space.searched))
            key = _key(trial.params)
            if key not in self.known:
                self.known[key] = trial.number
                trials.append(trial)
                continue
            repeats += 1
            before = self.study.get_trials(deepcopy=False)[self.known[key]]
            if before.state is TrialState.COMPLETE:
                for name, amount in before.constraints.items():
                    trial.set_constraint(name, amount)
                self.study.tell(trial, before.values)
            else:  # pruned, or in this very batch
                self.study.tell(trial, state=TrialState.FAIL)
            if repeats % _REPEATS == 0:
                self.study.enqueue_trial(self._untried())
        return trials

    def _untried(self) -> dict[str, Any]:
        draw = random.Random(self.settings.seed + len(self.study.get_trials(deepcopy=False)))
        while True:
            params = {key: _drawn(draw, distribution) for key, distribution in self.space.searched.items()}
            if _key(params) not in self.known:
                return params

    def _try(self, trials: Sequence[Trial]) -> None:
        whole = list(trials)
        if self.settings.short:
            whole = [
                trial
                for trial, one in zip(trials, self._stage(trials, "short"), strict=True)
                if not self._pruned(trial, one)
            ]
        for trial, one in zip(whole, self._stage(whole, "whole"), strict=True):
            self._tell(trial, one)

    def _stage(self, trials: Sequence[Trial], stage: str) -> list[Outcome]:
        if not trials:
            return []
        for i, trial in enumerate(trials):
            trial.set_user_attr("jobs", {**trial.user_attrs.get("jobs", {}), stage: self.jobs + i})
        returned = self._launch([self._overrides(trial.params, stage) for trial in trials])
        return [outcome(self.settings, one, stage == "short") for one in returned]

    def _overrides(self, params: dict[str, Any], stage: str) -> tuple[str, ...]:
        own = self.space.overrides(params)
        if stage == "whole":
            return own
        keys = {text.partition("=")[0] for text in self.settings.short}
        return (*(text for text in own if text.partition("=")[0] not in keys), *self.settings.short)

    def _launch(self, batch: list[tuple[str, ...]]) -> Sequence[JobReturn]:
        assert self.sweeper.launcher is not None
        self.sweeper.validate_batch_is_legal(batch)
        returned = self.sweeper.launcher.launch(batch, self.jobs)
        self.jobs += len(batch)
        return returned

    def _pruned(self, trial: Trial, short: Outcome) -> bool:
        """After a short run: whether the whole run is not worth its time."""
        if short.failure is not None:
            self._tell(trial, short)
            return True
        earlier = [one.user_attrs["short"] for one in self.study.get_trials(deepcopy=False)
                   if one.number != trial.number and "short" in one.user_attrs]  # fmt: skip
        better = sum(beats(self.settings, values, short.values) for values in earlier)
        if short.feasible:
            trial.set_user_attr("short", list(short.values))
            if 2 * better <= len(earlier):
                return False
        why = short.why or f"{better} of {len(earlier)} earlier short runs were better"
        trial.set_user_attr("why", f"short run: {why}")
        self._constrain(trial, short)
        if len(short.values) == 1:
            trial.report(short.values[0], 0)
        self.study.tell(trial, state=TrialState.PRUNED)
        say(f"mlperf_exp: trial {trial.number} ({_described(trial.params)}): no whole run: {why}\n")
        return True

    def _tell(self, trial: Trial, one: Outcome) -> None:
        """What came of a whole run, or of a short one that failed.

        Raises:
            RunFailed: too many failed one after another.
        """
        self._constrain(trial, one)
        trial.set_user_attr("why", one.why)
        if one.failure is None:
            self.failures = 0
            self.study.tell(trial, list(one.values))
            figures = ", ".join(f"{name} {value:,.6g}" for name, value in zip(self.settings.objective, one.values,
                                                                              strict=True))  # fmt: skip
            against = "" if one.feasible else f"; does not count: {one.why}"
            say(f"mlperf_exp: trial {trial.number} ({_described(trial.params)}): {figures}{against}\n")
            return
        trial.set_user_attr("failure", one.failure)
        self.study.tell(trial, state=TrialState.PRUNED)  # known to be bad: a failed trial would teach nothing
        say(f"mlperf_exp: trial {trial.number} ({_described(trial.params)}) failed: {one.failure}\n")
        self.failures += 1
        self.last_failure = one.failure
        if self.failures >= self.settings.max_failures:
            limit = f"{self.failures} runs failed one after another (hydra.sweeper.max_failures)"
            raise RunFailed(f"the search ended early: {limit}; the last: {one.failure}")

    def _constrain(self, trial: Trial, one: Outcome) -> None:
        for name, amount in {"failed": float(one.failure is not None), **one.broken}.items():
            trial.set_constraint(name, amount)


def _key(params: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(params.items()))


def _described(params: dict[str, Any]) -> str:
    return describe([f"{key}={value}" for key, value in params.items()])


def _drawn(draw: random.Random, distribution: Any) -> Any:
    if hasattr(distribution, "choices"):
        return draw.choice(distribution.choices)
    steps = round((distribution.high - distribution.low) / distribution.step)
    return distribution.low + draw.randint(0, steps) * distribution.step
