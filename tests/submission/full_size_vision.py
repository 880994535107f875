"""Data sets of MLPerf's sizes for the small networks: 50,000 images of digits, and questions in 10,833 pieces.

``python tests/submission/full_size_vision.py FOLDER`` writes ``FOLDER/images`` (flat, with ``val_map.txt``) and
``FOLDER/questions.json``, the same every time. With them a package for the edge can be made of whole runs on any
machine; the images are the validation digits again and again, the questions new texts of the same kind, more than are
asked for: ``dataset.samples=10833``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from mlperf_exp.data.digits import write_digits
from mlperf_exp.data.squad_tiny import paragraph

IMAGES = 50_000
_QUESTIONS = 9_000  # enough for the pieces: a long text makes two


def write_images(folder: Path, count: int = IMAGES) -> Path:
    """Links to the validation digits under ``count`` names, and their map."""
    digits = write_digits(folder / "digits") / "val"
    known = [(path, int(path.parent.name)) for path in sorted(digits.glob("*/*.jpg"))]
    flat = folder / "images"
    flat.mkdir()
    lines = []
    for number in range(count):
        path, label = known[number % len(known)]
        name = f"digits_val_{number + 1:08}.jpg"
        os.link(path, flat / name)
        lines.append(f"{name} {label}\n")
    (flat / "val_map.txt").write_text("".join(lines))
    return flat


def write_questions(folder: Path, count: int = _QUESTIONS) -> Path:
    """A file in SQuAD's format with ``count`` questions."""
    random = np.random.default_rng(61)
    paragraphs = [paragraph(random, f"full-{number}") for number in range(count // 2)]
    path = folder / "questions.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "full", "paragraphs": paragraphs}]}))
    return path


if __name__ == "__main__":
    into = Path(sys.argv[1])
    into.mkdir(parents=True, exist_ok=True)
    print(write_images(into), write_questions(into))
