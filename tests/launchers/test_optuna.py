"""The search by Optuna: what it draws from, what counts, what it leaves and takes up; then a whole one as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.mlperf_launchers import _optuna
from hydra_plugins.mlperf_launchers._optuna_config import OptunaSweeperConf, Require, Sampler
from hydra_plugins.mlperf_launchers._optuna_outcome import beats, outcome
from hydra_plugins.mlperf_launchers._optuna_space import Space, read
from hydra_plugins.mlperf_launchers.optuna_sweeper import OptunaSweeper
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mlperf_exp.cli import conf_dir, register
from mlperf_exp.errors import Interrupted, RunFailed, UserError

Answer = Callable[[dict[str, str]], dict[str, Any] | Exception]


def space(*arguments: str) -> Space:
    return read(arguments, {}, None)  # type: ignore[arg-type]


def finished(result: dict[str, Any] | Exception) -> JobReturn:
    done = JobReturn([])
    done.status = JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED
    done.return_value = result
    return done


def result(tokens: float, ttft: float = 100.0, word: str = "VALID", **more: Any) -> dict[str, Any]:
    return {
        "metrics": {"tokens_per_second": tokens, "ttft_p99_ms": ttft, "errors": 0.0},
        "tests": {"performance": {"loadgen": {"result_validity": word}}},
        "plan": {"config": {"scenario": {"ttft_ms": 2000.0, "tpot_ms": None, "latency_ms": None}}},
        "verdict": {"valid": False},
        **more,
    }


class FakeLauncher:
    """Answers each job from its overrides; ``batches`` are what it was asked for."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.batches: list[list[dict[str, str]]] = []

    def launch(self, batch: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        jobs = [dict(text.split("=", 1) for text in texts) for texts in batch]
        self.batches.append(jobs)
        return [finished(self.answer(job)) for job in jobs]

    @property
    def jobs(self) -> list[dict[str, str]]:
        return [job for batch in self.batches for job in batch]


def run(folder: Path, answer: Answer, *arguments: str, **keys: Any) -> FakeLauncher:
    """A search in ``folder``, whose runs are only made up."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["hydra/sweeper=optuna", f"hydra.sweep.dir={folder}"], return_hydra_config=True)
    for key, value in keys.items():
        OmegaConf.update(config, f"hydra.sweeper.{key}", value)
    sweeper, launcher = OptunaSweeper(), FakeLauncher(answer)
    sweeper.config, sweeper.launcher = config, launcher  # type: ignore[assignment]

    class Loader:
        config_loader: ConfigLoader | None = None

    sweeper.hydra_context = Loader()  # type: ignore[assignment]
    sweeper.validate_batch_is_legal = lambda batch: None  # type: ignore[method-assign]
    _optuna.search(sweeper, arguments)
    return launcher


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "optuna.json").read_text())
    return found


def test_what_is_searched() -> None:
    found = space(
        "a=1,2,x", "b=range(2,11,4)", "c=int(interval(1,9))", "d=tag(log,interval(0.1,10))", "e=3", "f=range(0,1,0.25)"
    )
    assert found.searched == {
        "a": CategoricalDistribution(["1", "2", "x"]),
        "b": IntDistribution(2, 10, step=4),
        "c": IntDistribution(1, 9),
        "d": FloatDistribution(0.1, 10.0, log=True),
        "f": FloatDistribution(0.0, 0.75, step=0.25),
    }
    assert found.fixed == ("e=3",)
    assert found.size is None
    assert space("a=1,2,x", "b=range(2,11,4)").size == 9
    assert found.overrides({"a": "x"}) == ("e=3", "a=x")


@pytest.mark.parametrize(
    ("argument", "said"),
    [("a=1", "nothing to search"), ("a=interval(5,1)", "is empty"), ("a=tag(log,interval(0,1))", "no logarithm"),
     ("a=range(5,1)", "falls")],
)  # fmt: skip
def test_what_cannot_be_searched(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        space(argument)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"objective": ["tokens"]}, "objective: there is no figure tokens"), ({"objective": []}, "needs one figure"),
     ({"constraints": {"gpu_power_mean_w": 1.0}}, "constraints: there is no figure"), ({"trials": 0}, "trials: 0")],
)  # fmt: skip
def test_keys_that_no_search_can_run_with(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _optuna.check(OptunaSweeperConf(**keys))


def test_what_counts() -> None:
    settings = OptunaSweeperConf(constraints={"ttft_p99_ms": 150.0})
    assert outcome(settings, finished(result(10.0)), short=False).feasible
    slow = outcome(settings, finished(result(10.0, ttft=300.0)), short=False)
    assert (slow.feasible, slow.why, slow.broken["ttft_p99_ms"]) == (False, "ttft_p99_ms", 1.0)
    invalid = finished(result(10.0, word="INVALID"))
    assert outcome(settings, invalid, short=False).why == "not VALID by LoadGen"
    assert outcome(settings, invalid, short=True).feasible  # a short run has too few queries for LoadGen
    late = finished(result(10.0, ttft=2500.0))
    assert outcome(OptunaSweeperConf(), late, short=True).why == "ttft_p99_ms over its bound"
    assert outcome(OptunaSweeperConf(require=Require.valid), finished(result(10.0)), short=False).why == "not valid"
    assert outcome(OptunaSweeperConf(require=Require.nothing), invalid, short=False).feasible
    assert outcome(settings, finished(RunFailed("it died")), short=False).failure == "it died"
    energy = OptunaSweeperConf(objective=["joules_per_token"])
    assert outcome(energy, finished(result(10.0)), short=False).failure == "it measured no joules_per_token"


def test_which_is_better() -> None:
    settings = OptunaSweeperConf(objective=["tokens_per_second", "ttft_p99_ms"])
    assert beats(settings, (10.0, 5.0), (9.0, 5.0))
    assert beats(settings, (10.0, 4.0), (10.0, 5.0))
    assert not beats(settings, (10.0, 6.0), (9.0, 5.0))
    assert not beats(settings, (10.0, 5.0), (10.0, 5.0))


@pytest.mark.parametrize("sampler", list(Sampler))
def test_the_best_that_counts_is_found(tmp_path: Path, sampler: Sampler) -> None:
    """The fastest settings miss LoadGen's VALID, one fails: the best of the others wins, and none is tried twice."""

    def answer(job: dict[str, str]) -> dict[str, Any] | Exception:
        rate = int(job["rate"])
        return RunFailed("out of memory") if rate == 3 else result(rate, word="INVALID" if rate > 6 else "VALID")

    launcher = run(tmp_path, answer, "rate=range(1,10)", "fixed=yes", trials=30, sampler=sampler)
    assert sorted(int(job["rate"]) for job in launcher.jobs) == list(range(1, 10))
    assert {job["fixed"] for job in launcher.jobs} == {"yes"}
    found = told(tmp_path)
    trials = {int(trial["params"]["rate"]): trial for trial in found["trials"]}
    assert [trials[6]["number"]] == found["best"]
    assert (trials[3]["state"], trials[3]["why"]) == ("failed", "out of memory")
    assert (trials[9]["state"], trials[9]["feasible"], trials[9]["why"]) == ("finished", False, "not VALID by LoadGen")


def test_a_front_of_two_figures(tmp_path: Path) -> None:
    """More tokens cost more time, but for one setting that is worse in both."""
    launcher = run(
        tmp_path, lambda job: result(float(job["x"]), ttft=200.0 if job["x"] == "2" else 10.0 * float(job["x"])),
        "x=1,2,3,4", objective=["tokens_per_second", "ttft_p99_ms"], trials=4,
    )  # fmt: skip
    assert len(launcher.jobs) == 4
    found = told(tmp_path)
    best = [trial["params"]["x"] for trial in found["trials"] if trial["number"] in found["best"]]
    assert sorted(best) == ["1", "3", "4"]
    assert found["objective"] == {"tokens_per_second": 1, "ttft_p99_ms": -1}


def test_short_runs_spare_whole_ones(tmp_path: Path) -> None:
    launcher = run(
        tmp_path, lambda job: result(float(job["x"]), ttft=5000.0 if job["x"] == "8" else 100.0),
        "x=1,2,3,4,5,6,7,8", "seconds=600", short=["seconds=5"], trials=8, seed=1,
    )  # fmt: skip
    short = [job["x"] for job in launcher.jobs if job["seconds"] == "5"]
    whole = [job["x"] for job in launcher.jobs if job["seconds"] == "600"]
    assert sorted(short) == list("12345678")
    assert "8" not in whole  # over the scenario's bound
    assert 1 <= len(whole) < 7
    for x in whole:  # each was at least as good as half of the short runs before it
        before = [other for other in short[: short.index(x)] if other != "8"]
        assert 2 * sum(other > x for other in before) <= len(before)
    pruned = [trial for trial in told(tmp_path)["trials"] if trial["state"] == "pruned"]
    assert len(pruned) == 8 - len(whole)
    assert all("whole" not in trial["jobs"] and trial["why"] for trial in pruned)


def test_a_search_that_was_ended_goes_on(tmp_path: Path) -> None:
    """What was being tried comes first; what is known is not tried again; another search is refused."""
    seen: list[str] = []

    def until_third(job: dict[str, str]) -> dict[str, Any]:
        seen.append(job["x"])
        if len(seen) == 3:
            raise Interrupted("Ctrl-C")
        return result(float(job["x"]))

    with pytest.raises(Interrupted):
        run(tmp_path, until_third, "x=1,2,3,4,5", trials=5)
    launcher = run(tmp_path, lambda job: result(float(job["x"])), "x=1,2,3,4,5", trials=5)
    assert launcher.jobs[0]["x"] == seen[2]
    assert sorted(seen[:2] + [job["x"] for job in launcher.jobs]) == list("12345")
    found = told(tmp_path)
    assert sorted(trial["params"]["x"] for trial in found["trials"] if trial["state"] == "finished") == list("12345")
    with pytest.raises(UserError, match=r"hydra.sweep.dir: .* holds another search: searched differ"):
        run(tmp_path, lambda job: result(1.0), "x=1,2", trials=5)


def test_failures_one_after_another_end_a_search(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"3 runs failed one after another.*no such model"):
        run(tmp_path, lambda job: RunFailed("no such model"), "x=range(0,50)", trials=50, max_failures=3)
    with pytest.raises(RunFailed, match="no run finished"):
        run(tmp_path / "b", lambda job: RunFailed("no such model"), "x=1,2", trials=2)


@pytest.mark.timeout(600)
def test_a_whole_search(tmp_path: Path) -> None:
    """One engine start over all batches, one tree in MLflow, and a second start that goes on."""
    folder = tmp_path / "search"
    command = [
        sys.executable, "-m", "mlperf_exp", "-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={folder}",
        "model=llama3_tiny", "backend=simulated", "scenario=server", "scenario.mode=performance", "progress=false",
        "dataset.samples=16", "scenario.min_query_count=20", "scenario.min_duration_s=0.3", "telemetry.enabled=false",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "hydra.sweeper.require=nothing",
        "scenario.target_qps=range(20,60,10)",
    ]  # fmt: skip
    first = subprocess.run([*command, "hydra.sweeper.trials=2"], capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    again = subprocess.run([*command, "hydra.sweeper.trials=3"], capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    assert "2 done" in again.stderr
    swept = json.loads((folder / "sweep.json").read_text())
    assert [(job["status"], job["earlier"]) for job in swept["jobs"]] == [
        ("finished", True), ("finished", True), ("finished", False)
    ]  # fmt: skip
    assert all(list(job["own"]) == ["scenario.target_qps"] for job in swept["jobs"])
    assert len({job["engine_started_by"] for job in swept["jobs"]}) == 2  # one start for each of the two commands
    assert all((folder / job["folder"] / "report.html").exists() for job in swept["jobs"])
    found = told(folder)
    assert len(found["trials"]) == 3
    best = max(found["trials"], key=lambda trial: trial["values"])
    assert found["best"] == [best["number"]]
    assert "★ Best by tokens_per_second" in again.stdout

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("mlperf_exp").experiment_id])
    parents = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run not in parents]
    assert (len(parents), len(children)) == (1, 3)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.data.params["sweep.scenario.target_qps"] for run in children} == {
        trial["params"]["scenario.target_qps"] if isinstance(trial["params"]["scenario.target_qps"], str)
        else str(trial["params"]["scenario.target_qps"]) for trial in found["trials"]
    }  # fmt: skip
