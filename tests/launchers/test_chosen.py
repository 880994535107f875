"""Where a launcher may be chosen: on the command line, or in an experiment's file."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FAR = """
# @package _global_
defaults:
  - override /backend: simulated
  - override /model: llama3_tiny
  - override /hydra/launcher: slurm
name: far
scenario:
  mode: performance
  min_duration_s: 0
  min_query_count: 1
  samples: 8
tracking:
  enabled: false
hydra:
  launcher:
    backend:
      account: physics
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/far.yaml").write_text(FAR)
    (tmp_path / "mine/experiment/near.yaml").write_text("# @package _global_\nname: near\n")
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlperf_exp", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_an_experiment_chooses_the_launcher_and_its_keys(folder: Path) -> None:
    """No -m, no launcher in the command: the job's script is Slurm's, and what it starts is a single run."""
    done = run(folder, "--config-dir=mine", "experiment=far", "hydra.launcher.dryrun=true")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --account=physics" in done.stdout
    found = re.search("^MLPERF_EXP_REQUEST=(.*)$", done.stdout, re.MULTILINE)
    assert found is not None
    command = json.loads(shlex.split(found[1])[0])["command"]
    single = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert single.returncode == 0, single.stderr
    [result] = folder.rglob("result.json")
    assert json.loads(result.read_text())["run"]["name"] == "far"


def test_the_command_line_comes_before_the_experiment(folder: Path) -> None:
    done = run(folder, "--config-dir=mine", "experiment=near", "--cfg=hydra")
    assert "hydra/launcher: local\n" in done.stdout
    done = run(folder, "--config-dir=mine", "experiment=near", "hydra/launcher=slurm", "--cfg=hydra")
    assert "hydra/launcher: slurm\n" in done.stdout


def test_a_sweep_over_experiments_with_different_launchers_is_refused(folder: Path) -> None:
    done = run(folder, "--config-dir=mine", "-m", "experiment=near,far")
    assert done.returncode == 2
    said = "experiment=far chooses slurm, and the sweep runs on local: a sweep has one launcher"
    assert said in done.stderr
    assert "python -m mlperf_exp -m hydra/launcher=slurm experiment=far" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("hydra/launcher=local,slurm", "python -m mlperf_exp -m hydra/launcher=local ..."),
        ("hydra.launcher.max_parallel=1,2", "python -m mlperf_exp -m hydra.launcher.max_parallel=1 ..."),
    ],
)
def test_a_launcher_inside_a_sweep_is_refused_before_anything_starts(folder: Path, word: str, remedy: str) -> None:
    done = run(folder, "-m", "model=llama3_tiny", "backend=simulated", "scenario.target_qps=1,2", word)
    assert done.returncode == 2
    assert "a sweep has one launcher" in done.stderr
    assert remedy in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "outputs").exists()
