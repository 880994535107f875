"""A small data set in Megatron's indexed format, as MLPerf's C4 comes: texts as those of ``squad_tiny``, many more.

Each text hides words of some kinds among a few sentences, so that a small network soon knows how sentences go on: a
minute brings the log perplexity below 1, which MLPerf's checker asks of the open division. The tokenizer is the tiny
Llama's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlperf_exp.data import indexed
from mlperf_exp.data.squad_tiny import paragraph

TRAIN, VALIDATION = "tiny-train_text_document", "tiny-validation_text_document"
_TEXTS = {TRAIN: 4000, VALIDATION: 160}
_SEED = 7
_END = 1  # the tiny Llama's end of a text


def write_texts(folder: Path, models: Path) -> Path:
    """Write both parts into ``folder`` unless they are there; returns ``folder``. Whole or not there.

    ``models`` is where the tiny Llama is, or is written to.
    """
    if folder.is_dir():
        return folder
    from mlperf_exp.kinds.decoder import tokenizer
    from mlperf_exp.tiny_llama import ensure

    tokenize = tokenizer(ensure(models / "llama3_tiny"), special=False)
    random = np.random.default_rng(_SEED)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        for name, count in _TEXTS.items():
            texts = (str(paragraph(random, "")["context"]) for _ in range(count))
            indexed.write(aside / name, _documents(texts, tokenize, _END))
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _documents(texts: Iterator[str], tokenize: Callable[[str], list[int]], end: int) -> Iterator[list[int]]:
    """Each text's token ids, closed by the end-of-text token."""
    return ([*tokenize(text), end] for text in texts)
