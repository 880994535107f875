"""Handwritten digits as JPEGs: scikit-learn's 1,797 images of 8 x 8 pixels, which come with it, written out larger.

A real data set without a download, in the layout of ImageNet: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``.
Source: ``sklearn.datasets.load_digits`` (UCI, Optical Recognition of Handwritten Digits).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

SIDE = 32
TRAIN, VAL = 1437, 360
_SEED = 1


def write_digits(folder: Path) -> Path:
    """Write the digits into ``folder`` unless they are there; returns ``folder``. Whole or not there."""
    if (folder / "val").is_dir():
        return folder
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(digits.images))
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for place, number in enumerate(order.tolist()):
            split = "train" if place < TRAIN else "val"
            into = aside / split / str(digits.target[number])
            into.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((digits.images[number] * (255 / 16)).astype(np.uint8))
            large = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.convert("RGB").save(into / f"{number:04}.jpg", quality=95)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
