"""The driver of jobs on other machines, each fault scripted: which result counts, what is tried again, what ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_plugins.mlperf_launchers._cluster import JobSpec, Kind, LaunchError, Need, State, Unreachable, quoted
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._driver import Driver
from hydra_plugins.mlperf_launchers._ledger import Entry, Ledger
from hydra_plugins.mlperf_launchers._outcome import Outcome
from hydra_plugins.mlperf_launchers._remote_config import Fault, RemoteLauncherConf, Retries, RunOn
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mlperf_exp.errors import Interrupted, InvalidResult, RunFailed, UserError
from tests.launchers.fake_cluster import FakeCluster

JOB = """
import json, os, sys, time
from pathlib import Path
act, folder = sys.argv[1], Path(sys.argv[-1].partition("=")[2].strip("'"))
print(f"I {act}", flush=True)
if act == "sleep":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
if act == "env":
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "X")
    print(json.dumps({name: os.environ.get(name) for name in names}))
if act.startswith("exit"):
    print("mlperf_exp: the reason")
    sys.exit(int(act[4:]))
if act == "lines":
    for i in range(60):
        print(f"line {i}")
    sys.exit(1)
if act == "kill":
    os.kill(os.getpid(), 9)
(folder / "result.json").write_text(json.dumps({"act": act}))
(folder / "big").write_bytes(os.urandom(100_000))
"""


class Sweep:
    """A sweep of jobs on a fake cluster."""

    def __init__(self, folder: Path, acts: list[str], shared: bool = True, **settings: Any) -> None:
        self.folder = folder
        script = folder / "job.py"
        script.write_text(JOB)
        self.settings = RemoteLauncherConf(**({"grace_s": 1.0, "unknown_grace_s": 1.0} | settings))
        self.cluster = FakeCluster(self.settings, shared, None if shared else folder / "there")
        specs = [JobSpec(i, (f"act={act}",), (str(script), act), folder / str(i)) for i, act in enumerate(acts)]
        self.ledger = Ledger(folder, "fake", {}, [Entry(spec) for spec in specs])

    def run(self) -> list[Outcome]:
        driver = Driver(self.cluster, self.settings, self.ledger)
        try:
            return driver.run()
        finally:
            self.cluster.close()

    def errors(self) -> list[str]:
        return [str(outcome.error or "") for outcome in self.run()]

    def jobs(self) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = json.loads((self.folder / "jobs.json").read_text())["jobs"]
        return value


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra_plugins.mlperf_launchers._driver._BACKOFF_S", (0.1,))
    monkeypatch.setattr("hydra_plugins.mlperf_launchers._track.SETTLE_S", 60.0)
    monkeypatch.setattr("hydra_plugins.mlperf_launchers._track.CANCEL_S", 6.0)


def test_results_are_in_order_and_no_loss_hides_another(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["fine", "exit1", "kill", "exit3", "fine"], max_parallel=2)
    outcomes = sweep.run()
    assert [outcome.number for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [type(outcome.error) for outcome in outcomes] == [
        type(None),
        RunFailed,
        RunFailed,
        InvalidResult,
        type(None),
    ]
    assert "exit status 1: the reason" in str(outcomes[1].error)
    assert "Killed (signal 9)" in str(outcomes[2].error)
    assert sweep.cluster.most <= 2
    assert [job["status"] for job in sweep.jobs()] == ["finished", "failed", "failed", "finished", "finished"]
    assert json.loads((tmp_path / "4" / "result.json").read_text()) == {"act": "fine"}
    assert all(f"remove {i}" in sweep.cluster.calls for i in range(5))


def test_the_nodes_own_word_stands_over_the_systems(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["fine"])
    sweep.cluster.script["0"] = [State(Kind.running), State(Kind.running), State(Kind.failed, "NonZeroExit", 100)]
    assert sweep.errors() == [""]


def test_a_success_without_a_status_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra_plugins.mlperf_launchers._track.SETTLE_S", 0.5)
    sweep = Sweep(tmp_path, ["fine"])
    sweep.cluster.held.add("0")
    sweep.cluster.script["0"] = [State(Kind.running), State(Kind.succeeded)]
    [error] = sweep.errors()
    assert "succeeded by the system's word" in error
    assert "left no status.json" in error


@pytest.mark.parametrize("kind", [Kind.preempted, Kind.lost])
def test_faults_of_machines_are_tried_again_in_a_folder_of_their_own(tmp_path: Path, kind: Kind) -> None:
    sweep = Sweep(tmp_path, ["fine"])
    sweep.cluster.held.add("0")
    sweep.cluster.script["0"] = [State(Kind.queued), State(kind, "the machine's fault")]
    [outcome] = sweep.run()
    assert outcome.error is None
    assert outcome.folder == tmp_path / "0.2"
    assert (outcome.folder / "result.json").exists()
    [first, second] = sweep.jobs()[0]["attempts"]
    assert "the machine's fault" in first["reason"]
    assert second["state"] == "finished"
    assert first["uid"] != second["uid"]


def test_exit_75_is_tried_again_as_often_as_wanted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["exit75"], retries=Retries(max=1))
    [error] = sweep.errors()
    assert "exit status 75" in error
    assert [one["attempt"] for one in sweep.jobs()[0]["attempts"]] == [1, 2]


@pytest.mark.parametrize("act", ["exit1", "exit2", "exit3", "kill"])
def test_a_jobs_own_end_is_never_tried_again(tmp_path: Path, act: str) -> None:
    sweep = Sweep(tmp_path, [act])
    sweep.run()
    assert sweep.cluster.calls.count("submit 0") == 1
    assert "submit 0.2" not in sweep.cluster.calls


def test_faults_that_are_not_listed_are_not_tried_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["exit75"], retries=Retries(on=[Fault.preempted]))
    assert "exit status 75" in sweep.errors()[0]
    assert len(sweep.jobs()[0]["attempts"]) == 1


def test_submission(tmp_path: Path) -> None:
    """A refusal is final, a fault is tried again, and after silence the system is asked whether it took the job."""
    sweep = Sweep(tmp_path, ["fine", "fine", "fine"])
    sweep.cluster.submits = {
        "0": [UserError("hydra.launcher.backend.partition", "there is no such partition", "Name another")],
        "1": [LaunchError("out of machines")],
        "2": [Unreachable("restarting")],
    }
    assert sweep.errors() == ["hydra.launcher.backend.partition: there is no such partition. Name another", "", ""]
    assert "submit 1.2" in sweep.cluster.calls
    assert sweep.cluster.calls.index("find 2") > sweep.cluster.calls.index("submit 2")
    assert "submit 2.2" not in sweep.cluster.calls


def test_silence_is_endured_for_the_grace_time_and_no_longer(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["fine"], unknown_grace_s=20.0, retries=Retries(max=0))
    sweep.cluster.script["0"] = [Unreachable("restarting")]
    assert sweep.errors() == [""]  # its own word is enough


@pytest.mark.parametrize("word", [None, State(Kind.unknown), Unreachable("gone")])
def test_a_state_that_stays_unknown_is_a_failure(tmp_path: Path, word: State | Exception | None) -> None:
    sweep = Sweep(tmp_path, ["fine"], unknown_grace_s=0.5, retries=Retries(max=0))
    sweep.cluster.held.add("0")
    sweep.cluster.script["0"] = [word]
    [error] = sweep.errors()
    assert "is lost: its state was unknown" in error
    assert "cancel 0" in sweep.cluster.calls


def test_the_queue_and_the_run_have_limits_of_their_own(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["sleep", "fine", "fine"], timeout_s=2.0, queue_timeout_s=0.5)
    sweep.cluster.held.add("1")
    errors = sweep.errors()
    assert "took longer than hydra.launcher.timeout_s=2.0 s" in errors[0]
    assert "waited longer than hydra.launcher.queue_timeout_s=0.5 s: waits" in errors[1]
    assert errors[2] == ""


def test_a_job_that_can_never_start_is_not_waited_for(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["fine"])
    sweep.cluster.held.add("0")
    sweep.cluster.script["0"] = [State(Kind.queued, "ErrImagePull: there is no such image", fatal=True)]
    sweep.cluster.script["0"].append(State(Kind.cancelled))
    assert sweep.errors() == ["job 0 can never start: ErrImagePull: there is no such image"]


def test_a_job_that_somebody_else_cancels_has_failed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["sleep", "fine"])
    sweep.cluster.on_submit = lambda attempt: (
        threading.Timer(1.5, sweep.cluster.cancel, [attempt]).start() if attempt.name == "0" else None
    )
    errors = sweep.errors()
    assert errors == ["job 0 was cancelled by somebody else", ""]


def test_fail_fast_starts_no_more(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["exit1", "fine", "fine"], max_parallel=1, on_error=OnError["fail_fast"])
    errors = sweep.errors()
    assert "job 2 was not started: job 0 had failed" in errors[2]
    assert "submit 1" not in sweep.cluster.calls


def test_ctrl_c_cancels_every_job_and_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path, ["sleep", "sleep", "fine", "sleep"], max_parallel=3)
    sweep.cluster.deaf.add("1")
    threading.Timer(3.0, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    outcomes = sweep.run()
    assert time.monotonic() - began < 15
    assert [type(outcome.error) for outcome in outcomes] == [Interrupted, Interrupted, type(None), Interrupted]
    told = capfd.readouterr().err
    assert "job 1: id-1 did not end and may still run" in told
    assert "job 0: id-0 did not end" not in told
    assert {"cancel 0", "cancel 1"} <= set(sweep.cluster.calls)
    assert "cancel 2" not in sweep.cluster.calls


def test_ids_are_on_disk_before_anything_is_awaited_and_another_process_takes_over(tmp_path: Path) -> None:
    first = Sweep(tmp_path, ["fine", "sleep", "fine"], max_parallel=2)
    driver = Driver(first.cluster, first.settings, first.ledger)
    driver._step()
    while len(driver._tracks) < 2 and not driver.outcomes:
        driver._step()
        time.sleep(0.05)
    driver._save()
    ledger = Ledger.read(tmp_path)  # the first process is gone from here on
    assert [entry.tries[-1].attempt.id for entry in ledger.entries[:2]] == ["id-0", "id-1"]
    first.cluster.processes["1"].send_signal(signal.SIGTERM)
    second = Driver(first.cluster, first.settings, ledger)
    outcomes = second.run()
    first.cluster.close()
    assert [type(outcome.error) for outcome in outcomes] == [type(None), RunFailed, type(None)]
    assert first.cluster.calls.count("submit 0") == first.cluster.calls.count("submit 2") == 1


def test_what_an_earlier_process_may_not_have_removed_is_removed_by_the_one_that_takes_over(tmp_path: Path) -> None:
    first = Sweep(tmp_path, ["fine", "fine"])
    first.run()
    second = Sweep(tmp_path, [])
    Driver(second.cluster, second.settings, Ledger.read(tmp_path)).run()
    assert second.cluster.calls == []
    second.cluster.removes_later = True
    Driver(second.cluster, second.settings, Ledger.read(tmp_path)).run()
    assert second.cluster.calls == ["remove 0", "remove 1"]


def test_results_come_back_without_a_shared_file_system(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep(tmp_path, ["fine", "lines"], shared=False)
    outcomes = sweep.run()
    assert outcomes[0].error is None
    assert json.loads((tmp_path / "0" / "result.json").read_text()) == {"act": "fine"}
    assert (tmp_path / "0" / "big").stat().st_size == 100_000
    assert "exit status 1: line 59" in str(outcomes[1].error)
    out, err = capfd.readouterr()
    assert "[job 0/here] I fine\n" in out
    assert "@mlperf_exp" not in out + err
    assert (tmp_path / "1" / "node.here.log").read_text().splitlines() == ["I lines", *(f"line {i}" for i in range(60))]
    assert [line.strip() for line in err.splitlines() if line.startswith("    line")] == [
        f"line {i}" for i in range(20, 60)
    ]


def test_every_node_gets_torchruns_environment(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["env"], env={"X": "a b;c\n$d"})
    spec = sweep.ledger.entries[0].spec
    need = Need(nodes=2, gpus_per_node=2)
    sweep.ledger.entries[0].spec = JobSpec(0, spec.overrides, spec.arguments, spec.folder, need=need, run_on=RunOn.each)
    sweep.run()
    tail = json.loads((tmp_path / "0" / "status.json").read_text())["tail"]
    seen = [json.loads(line) for line in tail if line.startswith("{")]
    assert sorted((one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in seen) == [
        ("0", "0", "4"),
        ("1", "1", "4"),
    ]
    assert {one["MASTER_ADDR"] for one in seen} == {"127.0.0.1"}
    assert {one["X"] for one in seen} == {"a b;c\n$d"}


def test_a_job_survives_being_written_down(tmp_path: Path) -> None:
    spec = JobSpec(3, ("a=1",), ("-m", "x", "a=1"), tmp_path, Need(2, 8, "h100"), RunOn.each, {"model.path": "/m"})
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_a_folder_of_any_name_reaches_the_node_as_it_is(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert OmegaConf.create({"key": override.value()})["key"] == text


def test_a_signal_never_waits_for_a_lock_of_the_loop_that_it_interrupts() -> None:
    """The handler runs on the loop's own thread, also amid its ``Event``'s methods."""
    driver = object.__new__(Driver)
    driver._signals, driver._woken = [], threading.Event()

    def interrupted() -> None:
        with driver._woken._cond:  # as within set, clear and the ends of wait
            driver._note(signal.SIGINT, None)

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [number for _, number in driver._signals] == [signal.SIGINT]
