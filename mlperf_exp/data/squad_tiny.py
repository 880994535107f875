"""A small data set in SQuAD's format, made up for this project: what is the colour, the animal, the city, the number?

Each text holds one word of each kind among many others, so that a network has to find the kind that the question asks
for. Some texts are longer than the small model's 64 tokens and are cut into pieces. The words of the two splits are the
same, their texts are not.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

KINDS = {
    "colour": ["red", "blue", "green", "yellow", "purple", "orange", "white", "black", "brown", "silver"],
    "animal": ["cat", "dog", "horse", "goat", "sheep", "rabbit", "otter", "heron", "badger", "mole"],
    "city": ["oslo", "lima", "cairo", "quito", "delhi", "turin", "lyon", "porto", "osaka", "perth"],
    "number": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "eleven", "twelve"],
}
_FILLERS = (
    "the old baker opens the door before the sun is up and listens to the wind in the trees",
    "nobody knows when the last train left or who was on it",
    "the river is slow and wide near the mill",
    "she wrote a long letter about the weather and the price of bread",
    "they walk home along the wall every evening",
    "a bell rings again and the market begins to fill with people from the hills",
)
_QUESTIONS = ("which {} is named ?", "what {} is in the text ?", "name the {} .")
TRAIN, DEV = 1600, 96
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Every word that occurs, the special tokens first."""
    words = {word for group in KINDS.values() for word in group} | set(KINDS)
    words |= {word for text in (*_FILLERS, *_QUESTIONS) for word in text.split() if word != "{}"}
    return [*SPECIAL, *sorted(words | {".", "?", "it", "says"})]


def write_questions(folder: Path) -> Path:
    """Write ``train.json``, ``dev.json`` and ``vocab.txt`` into ``folder`` unless it is there; returns ``folder``."""
    if folder.is_dir():
        return folder
    random = np.random.default_rng(3)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        for split, count in (("train", TRAIN), ("dev", DEV)):
            paragraphs = [paragraph(random, f"{split}-{n}") for n in range(count // 2)]
            data = {"version": "1.1", "data": [{"title": "tiny", "paragraphs": paragraphs}]}
            (aside / f"{split}.json").write_text(json.dumps(data, indent=1) + "\n")
        (aside / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def paragraph(random: np.random.Generator, name: str) -> dict[str, object]:
    """A text with one word of each kind between fillers, and two questions on it."""
    chosen = {kind: str(random.choice(words)) for kind, words in KINDS.items()}
    parts = [*(f"it says {word}" for word in chosen.values())]
    parts += [str(random.choice(_FILLERS)) for _ in range(int(random.integers(1, 6)))]
    random.shuffle(parts)
    text = " . ".join(parts) + " ."
    asked = random.permutation(list(KINDS))[:2]
    questions = [
        {
            "id": f"{name}-{kind}",
            "question": str(random.choice(_QUESTIONS)).format(kind),
            "answers": [{"text": chosen[kind], "answer_start": f" {text} ".index(f" {chosen[kind]} ")}],
        }
        for kind in map(str, asked)
    ]
    return {"context": text, "qas": questions}
