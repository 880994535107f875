"""A run is repeated from its folder: the command, the pins, a line for each difference, and what cannot be repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlperf_exp import environment

SHORT = ["model=llama3_tiny", "backend=simulated", "scenario=offline", "scenario.min_duration_s=0",
         "scenario.min_query_count=1", "scenario.samples=8", "scenario.mode=performance", "tracking.enabled=false",
         "name='a b; $(touch gone)'"]  # fmt: skip


def clean() -> dict[str, str]:
    """This process's variables but those that Ray and Lightning set, where a test beside this one imports them."""
    set_by_others = ("RAY_", "PYTORCH_NVML_")
    return {k: v for k, v in os.environ.items() if not k.startswith(set_by_others)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "run"
    command = [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={folder}", *SHORT]
    subprocess.run(command, check=True, capture_output=True, cwd=folder.parent, env=clean())
    return folder


def replay(run_dir: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlperf_exp.replay", str(run_dir), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean() | variables)


def test_here_and_now_nothing_differs(run_dir: Path) -> None:
    done = replay(run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"python -m pip install -r {run_dir}/requirements.txt" in lines
    assert f"cd {run_dir.parent}" in lines
    assert lines[-1].startswith("python -m mlperf_exp model=llama3_tiny")
    shell = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}\n{lines[-1]}"], capture_output=True, text=True
    )
    assert shell.stdout.splitlines() == ["-m", "mlperf_exp", *SHORT]  # as a shell takes it, nothing is run by its name


def test_each_difference_is_a_line(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    result = json.loads((run_dir / "result.json").read_text())
    result["environment"]["driver"] = "550.54"
    result["plan"]["config"]["scenario"]["stall_timeout_s"] = 7
    result["environment"]["variables"] = {"OMP_NUM_THREADS": "16"}
    (other / "result.json").write_text(json.dumps(result))
    pins = (run_dir / "requirements.txt").read_text()
    (other / "requirements.txt").write_text(pins.replace(f"numpy=={environment.pins()['numpy']}", "numpy==1.0"))
    said = replay(other, OMP_NUM_THREADS="3").stderr.splitlines()
    assert len(said) == 4, said
    assert f"differs: package numpy: 1.0 then, {environment.pins()['numpy']} now" in said
    assert "differs: driver: 550.54 then, none now" in said
    assert "differs: variable OMP_NUM_THREADS: 16 then, 3 now" in said
    assert any(line.startswith("differs: scenario.stall_timeout_s: 7 then, ") for line in said)


def test_it_runs_the_same_plan_on_the_same_engine(run_dir: Path) -> None:
    done = replay(run_dir, "--run")
    assert done.returncode == 0, done.stderr
    again = json.loads((run_dir.with_name("run-replay1") / "result.json").read_text())
    first = json.loads((run_dir / "result.json").read_text())
    assert again["run"]["plan_hash"] == first["run"]["plan_hash"]
    assert "the same engine" in done.stdout and "the same plan" in done.stdout
    assert again["tests"]["performance"]["issued"] == first["tests"]["performance"]["issued"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"run": {"overrides": [], "foreign": "x"}}', '{"run": {}}'])
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    done = replay(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("mlperf_exp: RUN_DIR: ")
    assert len(done.stderr.splitlines()) == 1


def test_secrets_are_no_part_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "canary")
    monkeypatch.setenv("RAY_REDIS_PASSWORD", "canary")
    monkeypatch.setenv("VLLM_HOST", "http://user:canary@host")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    found = environment.variables()
    assert "canary" not in str(found)
    assert found["NCCL_DEBUG"] == "INFO"
