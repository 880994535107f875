"""Trains the small ResNet on the handwritten digits, once: half a minute on two processor cores, 98 % top-1."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from mlperf_exp import networks
from mlperf_exp.data import images

CLASSES, EPOCHS, BATCH, SIDE = 10, 6, 64, 32
FILE = "digits.pth"
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def ensure(folder: Path, digits: Path, on_progress: Callable[[int, int], None]) -> Path:
    """The weights' file in ``folder``, trained on ``digits/train`` where there is none yet."""
    path = folder / FILE
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    network = train(digits / "train", on_progress)
    aside = folder / f".{FILE}.{os.getpid()}"
    torch.save(network.state_dict(), aside)
    aside.replace(path)
    return path


def train(folder: Path, on_progress: Callable[[int, int], None]) -> torch.nn.Module:
    """A trained network; the same on every run on one machine."""
    found = images.find(folder, CLASSES)
    pixels = torch.from_numpy(np.stack([images.pixels(image.path, SIDE, SIDE) for image in found]))
    inputs = ((pixels.float() / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor([image.label for image in found])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.build("resnet_tiny", CLASSES).to(memory_format=torch.channels_last).train()
        steps = EPOCHS * (len(found) // BATCH)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        done = 0
        for _ in range(EPOCHS):
            order = torch.randperm(len(found))
            for step in range(len(found) // BATCH):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                loss = functional.cross_entropy(network(inputs[chosen]), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                on_progress(done, steps)
    return network.eval()
