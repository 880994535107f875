"""``python -m mlperf_exp`` in real processes: what a user's slips get, and what composing costs."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlperf_exp import cli, config
from mlperf_exp.environment import gpus
from mlperf_exp.errors import UserError

SHORT = ["backend=simulated", "scenario.target_qps=50", "scenario.min_duration_s=0.2", "scenario.min_query_count=20",
         "dataset.samples=20", "tracking.enabled=false"]  # fmt: skip


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "MLFLOW_", "HF_"))}
    # an empty cache and no network: what is missing is missing
    return kept | {"HF_HOME": "/nonexistent", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def mlperf(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlperf_exp", *words],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def refused(cwd: Path, *words: str, status: int = 2) -> str:
    """Run; the one line on stderr that must be all that is said."""
    done = mlperf(cwd, *words)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlperf_exp: ")
    return line.removeprefix("mlperf_exp: ")


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        # what Hydra and OmegaConf find
        ("model=llama3_9b", "model", r"no 'llama3_9b'. Allowed: .*llama3_8b, .*Did you mean llama3_8b\?"),
        ("modle=llama3_8b", "modle", r"no such key. .*Did you mean model\?"),
        ("scenario.target_qsp=1", "scenario.target_qsp", r"no such key. .*Did you mean target_qps\?"),
        ("scenario.target_qps=fast", "scenario.target_qps", "'fast'.* Give a number"),
        ("scenario.mode=fast", "scenario.mode", "Allowed: both, performance, accuracy"),
        ("fail_on_invalid=maybe", "fail_on_invalid", "Give true or false"),
        ("+scenario.target_qps=1", "scenario.target_qps", "Leave out the plus sign"),
        ("scenario.target_qps", "scenario.target_qps", "Write KEY=VALUE"),
        ("hw=null", "hw", "Allowed: .*a30"),
        # what the plan finds
        ("+foo=1", "foo", "no such key. Allowed here: model, "),
        ("backend=openai", "backend.urls", "must be given"),
        ("scenario.target_qps=0", "scenario.target_qps", "above 0"),
        ("scenario.target_qps=-3", "scenario.target_qps", "above 0"),
        ("scenario.target_qps=nan", "scenario.target_qps", "above 0"),
        ("scenario.target_qps=1e9", "scenario.target_qps", "at most 1,000,000"),
        ("model=llama3_8b_edge scenario=server", "scenario", "edge benchmark. Use scenario=offline"),
        # what the machine and its files are found to lack
        (
            "model=llama3_tiny model.path=no/body",
            "model.path",
            "hf download no/body .*model.path=FOLDER.*weights=dummy",
        ),
        (
            "backend=simulated dataset.samples=9 scenario.samples=10",
            "scenario.samples",
            "data set has 9. Give at most 9",
        ),
        ("model.benchmark=llama3.1-8b", "model.benchmark", "Give one of llama3_1-8b, "),
        ("seed=1 --multirun hw=cpu", "hw=cpu", "Write flags .* before all KEY=VALUE"),
        ("--fast", "--fast", "no such flag"),
        ("model=llama3_tiny dataset.path=gone.json", "dataset.path", "gone.json does not exist.*data.prepare"),
    ],
)
def test_a_slip_gets_one_line_and_status_2(tmp_path: Path, words: str, key: str, says: str) -> None:
    line = refused(tmp_path, *words.split())
    assert line.startswith(f"{key}: ")
    assert re.search(says, line), line
    assert not list(tmp_path.rglob("result.json"))


def test_the_large_model_on_a_processor_says_what_to_do(tmp_path: Path) -> None:
    line = refused(tmp_path, "model=llama3_8b", "hw=cpu")
    if line.startswith("hw: "):  # not enough memory for 15 GiB of weights
        assert "this machine has" in line and "experiment=quickstart" in line
    else:
        assert line.startswith("model.path: 'meta-llama/Llama-3.1-8B-Instruct' is neither a folder nor in the Hugging")
        assert "hf download meta-llama/" in line and "model.weights=dummy" in line


def test_a_profile_with_gpus_explains_itself_on_a_machine_without(tmp_path: Path) -> None:
    if gpus():
        pytest.skip("this machine has an NVIDIA GPU, so the profile is not refused")
    line = refused(tmp_path, "model=llama3_8b", "hw=a30", "scenario=server")
    assert line.startswith("hw: a30 wants 1 NVIDIA GPU on this machine, which has none. ")
    assert "hw=cpu" in line and "backend=openai" in line


@pytest.mark.parametrize("where", ["/proc/mlperf", "file", "file/below", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(tmp_path, *SHORT, f"hydra.run.dir={where}")
    assert line.startswith(f"hydra.run.dir: {where}")
    assert line.endswith("Give a folder that can be written: hydra.run.dir=FOLDER")


_MOUNT = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
folder, size = sys.argv[1:3]
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):  # a mount of this process's own
    sys.exit(77)
if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()):
    sys.exit(77)
if len(sys.argv) > 3 and sys.argv[3] == "ro":
    if libc.mount(None, folder.encode(), None, 0x21, None):  # remount, read-only
        sys.exit(77)
sys.exit(subprocess.run([sys.executable, "-m", "mlperf_exp", *sys.argv[4:]]).returncode)
"""


def mounted(cwd: Path, size: str, flag: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run with a small tmpfs of its own at ``cwd/disk``, in a mount namespace that ends with the process."""
    (cwd / "disk").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _MOUNT, str(cwd / "disk"), size, flag, *words],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("mounting a small tmpfs needs root (CAP_SYS_ADMIN)")
    return done


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    done = mounted(tmp_path, "1m", "ro", *SHORT, "hydra.run.dir=disk/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        "mlperf_exp: hydra.run.dir: disk/run: Read-only file system. "
        "Give a folder that can be written: hydra.run.dir=FOLDER"
    )


@pytest.mark.parametrize("size", ["4k", "8k", "64k"])  # full at the first file, within the test, at the report
def test_a_full_disk_ends_the_run_with_one_line_and_no_hang(tmp_path: Path, size: str) -> None:
    done = mounted(tmp_path, size, "rw", *SHORT, "hydra.run.dir=disk/run", "progress=false")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlperf_exp: ") and "/disk/run/" in line
    assert line.endswith("No space left on device. Make room, or choose another disk: hydra.run.dir=FOLDER")


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "word",
    [
        f"tracking.uri=http://me:{SECRET}@127.0.0.1:9/",
        f"tracking.uri=postgresql://me:a/b?{SECRET}@127.0.0.1/db",
        f"backend.urls=[http://ok:80,http://{SECRET}@127.0.0.1:9]",
        f"++tracking.uri=http://:{SECRET}@127.0.0.1",
    ],
)
def test_a_password_is_refused_and_written_nowhere(tmp_path: Path, word: str) -> None:
    backend = "openai" if "urls" in word else "simulated"
    done = mlperf(tmp_path, f"backend={backend}", word)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mlperf_exp: {word.split('=')[0].lstrip('+')}: must not hold a user name or password")
    assert SECRET not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_password_in_a_file_of_the_users_is_not_copied(tmp_path: Path) -> None:
    """Hydra's own copies (.hydra) would hold it: they are off, and the run writes its own after the check."""
    mine = tmp_path / "mine"
    (mine / "experiment").mkdir(parents=True)
    text = f'# @package _global_\ntracking:\n  uri: "http://me:{SECRET}@127.0.0.1:9"\n'
    (mine / "experiment" / "secret.yaml").write_text(text)
    done = mlperf(tmp_path, "--config-dir", str(mine), "experiment=secret", "backend=simulated")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlperf_exp: tracking.uri: must not hold") and SECRET not in line
    copies = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert not copies


@pytest.mark.parametrize("url", ["http://host:5000/a@b", "sqlite:////home/me@site/x.db", "http://[::1]:80", "a@b", ""])
def test_what_only_looks_like_a_password_is_let_through(url: str) -> None:
    cli.refuse_secrets([f"tracking.uri={url}", "scenario=server", "--cfg", "job"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("finished")
    done = mlperf(cwd, *SHORT, "hydra.run.dir=run", "progress=false")
    assert done.returncode == 0, done.stderr
    return cwd


def test_a_run_leaves_its_record_and_no_line_of_error(finished: Path) -> None:
    result = json.loads((finished / "run" / "result.json").read_text())
    assert result["run"]["status"] == "finished"
    assert result["metrics"]["completed"] >= 20
    assert not result["verdict"]["valid"]
    assert (finished / "run" / "config.yaml").exists()
    assert not (finished / "run" / ".hydra").exists()


def test_a_result_is_not_run_over(finished: Path) -> None:
    before = (finished / "run" / "result.json").read_bytes()
    line = refused(finished, *SHORT, "hydra.run.dir=run")
    assert line.startswith("hydra.run.dir: ") and "already holds a result" in line
    assert (finished / "run" / "result.json").read_bytes() == before


def test_fail_on_invalid_is_status_3(tmp_path: Path) -> None:
    done = mlperf(tmp_path, *SHORT, "fail_on_invalid=true", "progress=false")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "not valid: The system is simulated" in line


def test_two_runs_in_one_folder_and_an_interruption(tmp_path: Path) -> None:
    long = [*SHORT, "scenario=server", "scenario.min_duration_s=60", "hydra.run.dir=run", "progress=false"]
    first = subprocess.Popen(
        [sys.executable, "-m", "mlperf_exp", *long], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "performance" / "user.conf").exists():
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
        line = refused(tmp_path, *SHORT, "hydra.run.dir=run")
        assert line.startswith("hydra.run.dir: another run is writing to ")
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130
    (line,) = said.splitlines()
    assert "interrupted; what was finished is in" in line
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["run"]["status"] == "interrupted"
    assert result["metrics"]["completed"] > 0
    assert not result["verdict"]["valid"]


def test_a_system_that_is_lost_is_status_1_and_keeps_what_there_is(tmp_path: Path) -> None:
    done = mlperf(tmp_path, *SHORT, "backend.fail_after=10", "scenario=server", "hydra.run.dir=run", "progress=false")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the run failed: " in line and "backend.fail_after" in line
    assert json.loads((tmp_path / "run" / "result.json").read_text())["run"]["status"] == "failed"


_HEAVY = ("torch", "vllm", "mlflow", "mlperf_loadgen", "transformers", "numpy", "pandas", "matplotlib", "aiohttp")


def test_composing_imports_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mlperf_exp", "--cfg", "job", "experiment=quickstart"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "omegaconf" in imported, "the list is read wrongly"
    assert not imported & set(_HEAVY)
    assert "name: quickstart" in done.stdout
    assert not list(tmp_path.iterdir()), "composing leaves no folder behind"


def test_help_names_every_group_and_option(tmp_path: Path) -> None:
    done = mlperf(tmp_path, "--help")
    assert done.returncode == 0 and not done.stderr
    for group in ("model", "hw", "scenario", "backend", "dataset", "experiment"):
        lines = done.stdout.splitlines()
        first = next(i for i, line in enumerate(lines) if line.split()[:1] == [group])
        further = itertools.takewhile(lambda line: line.startswith(" " * 12), lines[first + 1 :])
        line = " ".join([lines[first], *further])
        for path in (cli.conf_dir() / group).glob("*.yaml"):
            assert re.search(rf"(?<![\w]){re.escape(path.stem)}(?![\w])", line), f"{group}={path.stem} is not in --help"
    assert done.stdout.count("python -m mlperf_exp") >= 3
    assert "schema" not in done.stdout
    keys = re.findall(r"^ {2,4}([a-z_]+\.[a-z_.]+)=", done.stdout, re.MULTILINE)
    known = mlperf(tmp_path, "--cfg", "all").stdout
    assert len(keys) >= 5, done.stdout
    assert all(f"{key.split('.')[-1]}:" in known for key in keys if not key.startswith("backend.engine."))
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_remedies_are_those_of_this_omegaconf() -> None:
    """The words that a remedy hangs on come from OmegaConf: a new version may change them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    cfg = OmegaConf.structured(config.ScenarioRules)
    with pytest.raises(OmegaConfBaseException) as caught:
        cfg.samples = "many"
    assert cli.explain(caught.value).endswith("Give a whole number")
    backend = OmegaConf.structured(config.OpenaiBackend)
    with pytest.raises(OmegaConfBaseException) as caught:
        backend.urls = "http://host"
    assert cli.explain(caught.value).endswith("Give a list: urls=[...]")


@pytest.mark.parametrize("word", ["~model", "model=", "model=null"])
def test_a_group_is_never_nothing(word: str) -> None:
    with pytest.raises(UserError, match=r"model: a run needs one\. Allowed: .*llama3_tiny"):
        cli._refuse_nothing([word])


def test_a_closed_terminal_does_not_change_the_status(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlperf_exp", "model=nope"],
            cwd=tmp_path,
            env=environment(),
            stderr=writer,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.returncode == 2
