"""Sweeps with the launcher ``local``, as real commands: what jobs get, how they end, what a signal does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hydra_plugins.mlperf_launchers._config import OnError
from hydra_plugins.mlperf_launchers._local import check
from hydra_plugins.mlperf_launchers.local import LocalLauncher

from mlperf_exp.errors import UserError
from tests.launchers.ended import Ended, wait_for

# A task that does what its override says. Functions and classes of __main__ reach the jobs by value.
APP = '''
import contextlib, ctypes, json, os, signal, subprocess, sys, threading, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from mlperf_exp.errors import ExperimentError, Interrupted, UserError


class Awkward(Exception):
    """Can be pickled, and not be made again from the pickle."""

    def __init__(self, one, two):
        super().__init__(f"awkward {one} {two}")


def do(cfg, folder):
    act = str(cfg.act).split("_")[0]
    print(f"out of {cfg.act}", flush=True)
    print(f"err of {cfg.act}", file=sys.stderr, flush=True)
    if act == "raise":
        raise ValueError("a plain fault")
    if act == "awkward":
        raise Awkward(1, 2)
    if act == "user":
        raise UserError("a.key", "is wrong", "Mend it")
    if act == "unpicklable":
        return threading.Lock()
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "segv":
        ctypes.string_at(0)
    if act == "exit":
        for i in range(30):
            print(f"line {i}", flush=True)
        os._exit(7)
    if act == "leaver":
        subprocess.Popen(["sleep", "60"])
    if act == "linger":
        threading.Thread(target=time.sleep, args=(300,)).start()
    if act == "late":
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(300)
    if act == "slow":
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            (folder / "kept").touch()
            raise Interrupted("interrupted by SIGINT")
    if act == "stubborn":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "300"])
        (folder / "stubborn").write_text(str(child.pid))
        time.sleep(300)
    if act == "brief":
        time.sleep(float(str(cfg.act).split("_")[1]))
    return cfg.act


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    seen = {
        "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "argv": sys.argv, "cwd": os.getcwd(),
        "value": cfg.get("value"), "number": HydraConfig.get().job.num, "extra": os.environ.get("EXTRA"),
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    return do(cfg, folder)


if __name__ == "__main__":
    try:
        main()
    except ExperimentError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
'''


class Sweep(Ended):
    """A sweep that has ended."""

    def ends(self) -> list[str]:
        """The table's column ``Status``, in the table's order."""
        rows = re.findall(r"^ *(\d+)  .*? (finished|failed|interrupted|not started) ", self.stdout, re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(len(rows))), "the jobs' order is lost"
        return [end for _, end in rows]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


def command(app: Path, *overrides: str) -> list[str]:
    fixed = ["-m", "hydra/launcher=local", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}"]
    return [sys.executable, str(app), *fixed, *overrides]


ENVIRONMENT = {**os.environ, "HYDRA_FULL_ERROR": "1"}  # as mlperf_exp sets it: errors reach the caller


def sweep(app: Path, *overrides: str) -> Sweep:
    done = subprocess.run(
        command(app, *overrides), capture_output=True, text=True, timeout=400, cwd=app.parent, env=ENVIRONMENT
    )
    return Sweep(done.returncode, done.stdout, done.stderr, app.parent / "sweep")


@contextlib.contextmanager
def running(app: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(app, *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=app.parent,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str], app: Path, timeout_s: float = 60) -> Sweep:
    stdout, stderr = process.communicate(timeout=timeout_s)
    return Sweep(process.returncode, stdout, stderr, app.parent / "sweep")


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_each_job_has_a_fresh_process_of_its_own(app: Path) -> None:
    done = sweep(app, "+act=ok_1,ok_2", "+hydra.launcher.env.EXTRA='a b'")
    assert done.status == 0, done.stderr
    jobs = [done.seen(0), done.seen(1)]
    assert jobs[0]["pid"] != jobs[1]["pid"]
    assert jobs[0]["parent"] == jobs[1]["parent"]
    for number, job in enumerate(jobs):
        assert job["session"] == job["pid"]  # out of the reach of the terminal's Ctrl-C
        assert job["number"] == number
        assert job["extra"] == "a b"
        assert job["cwd"] == str(app.parent)
        assert job["argv"] == [str(app), *command(app, "+act=ok_1,ok_2", "+hydra.launcher.env.EXTRA='a b'")[2:]]
    assert done.ends() == ["finished", "finished"]
    assert "out of ok_1\nout of ok_2\n" in done.stdout  # one job at a time: its output is its own
    assert "err of ok_1" in done.stderr
    assert not list(done.folder.rglob(".job_*"))


VALUES = [
    "a b",
    'say "no"',
    "it's",
    "a,b",
    "two\nlines",
    "$HOME ${x} $(id) `id`",
    "back\\slash\\",
    "[x]{y}",
    " ",
    "ü→\t",
]


def test_awkward_values_arrive_unchanged(app: Path) -> None:
    def quote(value: str) -> str:  # Hydra's way: backslashes count only before a quote, ${ begins an interpolation
        text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
        return "'" + text.replace("${", "\\${") + "'"

    done = sweep(app, "+act=ok", "+value=" + ",".join(map(quote, VALUES)), "hydra.launcher.max_parallel=2")
    assert done.status == 0, done.stderr
    assert [done.seen(number)["value"] for number in range(len(VALUES))] == VALUES


def test_what_fails_is_told_and_the_others_go_on(app: Path) -> None:
    acts = ["ok_1", "raise", "user", "awkward", "unpicklable", "kill", "segv", "exit", "leaver", "ok_2"]
    done = sweep(app, "+act=" + ",".join(acts), "hydra.launcher.max_parallel=2")
    assert done.ends() == ["finished"] + ["failed"] * 7 + ["finished"] * 2
    assert done.status == 1
    assert re.search(r"In the job's process:\nTraceback.* in do\n.*ValueError: a plain fault\n", done.stderr, re.DOTALL)
    said = {int(n): text for n, text in re.findall(r"^mlperf_exp: job (\d+) failed: (.*)$", done.stderr, re.MULTILINE)}
    assert said[1] == "ValueError: a plain fault"
    assert said[2] == "a.key: is wrong. Mend it"
    assert said[3] == "Awkward: awkward 1 2"
    assert "return value cannot be pickled" in said[4]
    assert said[5] == "job 5 (+act=kill) was killed by SIGKILL, and left no result"
    assert said[6] == "job 6 (+act=segv) was killed by SIGSEGV, and left no result"
    assert said[7] == "job 7 (+act=exit) ended with exit status 7, and left no result"
    assert "    line 29\n" in done.stderr
    assert "    line 11\n" in done.stderr
    assert "    line 9\n" not in done.stderr  # twenty lines, of which one may be that on standard error
    assert "[job 0] out of ok_1\n" in done.stdout
    assert "[job 9] err of ok_2\n" in done.stderr


def test_an_error_of_the_project_arrives_as_its_class(app: Path) -> None:
    done = sweep(app, "+act=user,ok")
    assert done.status == 2
    assert done.stderr.splitlines()[-1] == "UserError: a.key: is wrong. Mend it"
    assert done.ends() == ["failed", "finished"]


def test_fail_fast_starts_no_more(app: Path) -> None:
    done = sweep(app, "+act=ok,exit,ok_2,ok_3", "hydra.launcher.on_error=fail_fast", "hydra.launcher.stream_logs=false")
    assert done.ends() == ["finished", "failed", "not started", "not started"]
    assert done.status == 1
    assert not (done.folder / "2").exists()
    assert "out of ok" not in done.stdout
    assert (done.folder / "0" / ".job_0.log").read_text() == "out of ok\nerr of ok\n"
    assert "JobLost: job 1 (+act=exit) ended with exit status 7" in done.stderr.splitlines()[-1]


def test_timeout_and_grace_end_jobs_and_no_results(app: Path) -> None:
    limits = ["hydra.launcher.timeout_s=5", "hydra.launcher.grace_s=1", "hydra.launcher.max_parallel=4"]
    # One keeps what it has; one finishes all the same; one has a thread that never ends; one is in time.
    done = sweep(app, "+act=slow,late,linger,ok", *limits)
    assert done.ends() == ["failed", "finished", "finished", "finished"]
    assert (done.folder / "0" / "kept").exists()
    assert "took longer than hydra.launcher.timeout_s=5 s" in done.stderr.splitlines()[-1]
    assert done.status == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_the_running_jobs(app: Path, number: signal.Signals) -> None:
    with running(app, "+act=ok,slow_1,slow_2,ok_2", "hydra.launcher.max_parallel=2") as process:
        folder = app.parent / "sweep"
        wait_for(lambda: all((folder / str(job) / "seen.json").exists() for job in (1, 2)))
        time.sleep(0.2)
        process.send_signal(number)
        done = ended(process, app)
    assert done.status == 130
    assert done.ends() == ["finished", "interrupted", "interrupted", "not started"]
    assert (folder / "1" / "kept").exists()
    assert (folder / "2" / "kept").exists()
    assert "was interrupted: job 1, 2; was not started: job 3; finished: 1 of 4" in done.stderr.splitlines()[-1]


def test_an_interrupt_while_a_job_starts(app: Path) -> None:
    with running(app, "+act=slow,slow_2") as process:
        wait_for(lambda: bool(psutil.Process(process.pid).children()))
        process.send_signal(signal.SIGINT)  # Python itself is still starting in the job
        done = ended(process, app)
    assert done.status == 130
    assert done.ends() == ["interrupted", "not started"]
    assert "Traceback" not in done.stderr.split("mlperf_exp: SIGINT")[-1].split("Error executing")[0]


def test_a_job_that_ignores_signals_is_killed_by_a_second_ctrl_c(app: Path) -> None:
    with running(app, "+act=stubborn") as process:
        note = app.parent / "sweep" / "0" / "stubborn"
        wait_for(lambda: note.exists() and bool(note.read_text()))
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)  # the same key press, by another way
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        done = ended(process, app, timeout_s=10)
    assert done.status == 130
    assert done.ends() == ["interrupted"]
    assert not alive(json.loads((app.parent / "sweep" / "0" / "seen.json").read_text())["pid"])
    wait_for(lambda: not alive(int(note.read_text())), 5)


def test_a_job_that_ignores_signals_is_killed_when_its_grace_is_over(app: Path) -> None:
    with running(app, "+act=stubborn", "hydra.launcher.grace_s=1") as process:
        note = app.parent / "sweep" / "0" / "stubborn"
        wait_for(lambda: note.exists() and bool(note.read_text()))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        done = ended(process, app)
    assert done.status == 130
    assert 2 < time.monotonic() - began < 30
    wait_for(lambda: not alive(int(note.read_text())), 5)


def test_jobs_end_when_the_launcher_is_killed(app: Path) -> None:
    with running(app, "+act=slow") as process:
        seen = app.parent / "sweep" / "0" / "seen.json"
        wait_for(lambda: seen.exists() and bool(seen.read_text()))
        time.sleep(0.2)
        process.kill()
        wait_for(lambda: not alive(json.loads(seen.read_text())["pid"]), 20)
    assert (app.parent / "sweep" / "0" / "kept").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("hydra.launcher.max_parallel=0", "hydra.launcher.max_parallel: 0 jobs at once"),
        ("hydra.launcher.timeout_s=-1", "hydra.launcher.timeout_s: -1 s"),
        ("hydra.launcher.timeout_s=nan", "hydra.launcher.timeout_s: nan s"),
    ],
)
def test_values_that_cannot_be_are_refused(app: Path, override: str, says: str) -> None:
    done = sweep(app, "+act=ok", override)
    assert done.status == 2
    assert says in done.stderr.splitlines()[-1]
    assert not done.folder.exists()


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"A": "x\0"}])
def test_variables_that_cannot_be_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"hydra\.launcher\.env"):
        check(LocalLauncher(1, None, OnError["continue"], True, env, 60.0))


def test_a_folder_that_cannot_be_made_fails_its_job_only(app: Path) -> None:
    (app.parent / "sweep").mkdir()
    (app.parent / "sweep" / "0").touch()
    done = sweep(app, "+act=ok,ok_2")
    assert done.ends() == ["failed", "finished"]
    assert done.status == 2
    assert "hydra.sweep.subdir: cannot make" in done.stderr.splitlines()[-1]


SIMULATED = [
    "model=llama3_tiny",
    "backend=simulated",
    "scenario=server",
    "tracking.enabled=false",
    "scenario.target_qps=2000",
    "scenario.min_duration_s=1",
]


def mlperf_exp(folder: Path, *overrides: str) -> Sweep:
    done = subprocess.run(
        [sys.executable, "-m", "mlperf_exp", "-m", f"hydra.sweep.dir={folder}", *SIMULATED, *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder.parent,
    )
    return Sweep(done.returncode, done.stdout, done.stderr, folder)


def test_a_sweep_of_real_runs_ends_in_one_table(tmp_path: Path) -> None:
    done = mlperf_exp(tmp_path / "sweep", "scenario.target_qps=1000,0,2000", "hydra.launcher.max_parallel=2")
    assert done.ends() == ["finished", "failed", "finished"]
    assert done.status == 2  # that of the first job that failed: a mistake of the user's
    assert "scenario.target_qps" in done.stderr.splitlines()[-1]
    table = done.stdout[done.stdout.index("Job  Overrides") :]
    for number, rate in ((0, 1000), (2, 2000)):
        result = json.loads((done.folder / str(number) / "result.json").read_text())
        row = next(line for line in table.splitlines() if re.match(rf" *{number}  ", line))
        assert f"scenario.target_qps={rate} " in row
        assert "invalid" in row
        assert f"{result['metrics']['tokens_per_second']:,.0f}" in row
        assert f"{result['metrics']['ttft_p99_ms']:.4g} ms" in row
        assert result["run"]["command"][1] == "-m"
        assert not [a for a in result["artifacts"] if ".job_" in a["path"]]
    assert "All    model=llama3_tiny" in table


def test_a_run_that_loadgen_holds_ends_with_its_result(tmp_path: Path) -> None:
    """A test that is left behind in LoadGen can only be ended with its process, at once."""
    done = mlperf_exp(tmp_path / "sweep", "backend.hang_after=5", "scenario.stall_timeout_s=1")
    assert done.ends() == ["failed"]
    assert done.status == 1
    assert json.loads((done.folder / "0" / "result.json").read_text())["run"]["status"] == "failed"
    assert "the run failed" in done.stderr.splitlines()[-1]


def test_composing_imports_nothing_heavy() -> None:
    code = "import sys, mlperf_exp.cli as cli\ntry:\n cli.main()\nfinally:\n print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "--cfg", "hydra"], capture_output=True, text=True, timeout=60)
    assert "LocalLauncher" in done.stdout
    loaded = set(done.stderr.split())
    assert "hydra_plugins.mlperf_launchers.local" in loaded
    assert not loaded & {"torch", "vllm", "mlflow", "mlperf_loadgen", "cloudpickle", "rich"}
    assert "hydra_plugins.mlperf_launchers._local" not in loaded
