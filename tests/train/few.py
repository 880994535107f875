"""A small folder of real JPEGs, and the command on it."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from mlperf_exp.data.digits import write_digits
from tests.runs.runs_of_commands import Finished


def few_digits(root: Path, train: int = 8, val: int = 2) -> Path:
    """``train`` and ``val`` images of each of the ten digits."""
    digits = write_digits(root / "digits")
    for part, count in (("train", train), ("val", val)):
        for folder in sorted((digits / part).iterdir()):
            target = root / "few" / part / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                os.link(image, target / image.name)
    return root / "few"


def words(folder: Path, data: Path, *more: str) -> list[str]:
    """A command that trains three epochs of five steps on ``data`` into ``folder``."""
    return [
        sys.executable, "-m", "mlperf_exp", "model=resnet_tiny", "hw=cpu", "scenario=train", f"dataset.path={data}",
        f"hydra.run.dir={folder}", "division=open", "tracking.enabled=false", "scenario.global_batch_size=16",
        "scenario.optimizer=sgd", "scenario.base_lr=0.05", "scenario.warmup_epochs=1", "scenario.decay_epochs=3",
        "scenario.max_epochs=3", "scenario.eval_offset=1", "scenario.eval_period=1", "backend.threads=1",
        "backend.log_every_steps=2", *more,
    ]  # fmt: skip


class Done(Finished):
    """A command that ended, and left checkpoints."""

    def weights(self) -> dict[str, torch.Tensor]:
        return weights(self.folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The network in the newest checkpoint."""
    path = max(folder.glob("train/checkpoints/step-*.pt"))
    network: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["network"]
    return network


def run(folder: Path, data: Path, *more: str, timeout_s: float = 600) -> Done:
    """Run the command to its end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words(folder, data, *more), capture_output=True, text=True, timeout=timeout_s,
                          cwd=folder.parent, check=False)  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr, folder)
