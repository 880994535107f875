"""ROUGE of a batch of text pairs: what a scoring process runs.

It imports rouge_score and NLTK only, so that a fresh process is soon ready and never touches an accelerator.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import nltk
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer

from mlperf_exp.data.punkt import sentence_splitter

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _StemOnce(Tokenizer):  # type: ignore[misc]
    """rouge_score's own tokenizer with its own stemmer, which takes most of the time, asked once a word."""

    def __init__(self) -> None:
        self.stem: Callable[[str], str] = cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = tokenize(text, self)
        return tokens


class PairScorer:
    """Scores pairs as the reference does: strip, one sentence a line on both sides, ROUGE with stemmer."""

    def __init__(self) -> None:
        self._split, self.note = sentence_splitter()
        self._scorer: Any = RougeScorer(METRICS, tokenizer=_StemOnce())

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> tuple[list[tuple[float, ...]], int]:
        """The F-measures (0 to 1) of each pair in the order of ``METRICS``, and the predictions' characters."""
        rows: list[tuple[float, ...]] = []
        characters = 0
        for predicted, wanted in zip(predictions, references, strict=True):
            prediction = "\n".join(self._split(predicted.strip()))
            reference = "\n".join(self._split(wanted.strip()))
            scores = self._scorer.score(reference, prediction)
            rows.append(tuple(scores[name].fmeasure for name in METRICS))
            characters += len(prediction)
        return rows, characters


_mine: PairScorer | None = None


def start_worker(nltk_path: list[str]) -> None:
    """Set up a scoring process; Ctrl-C is its parent's business."""
    global _mine
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nltk.data.path[:] = nltk_path
    _mine = PairScorer()


def score_chunk(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[tuple[float, ...]], int]:
    """:meth:`PairScorer.score` in a process that :func:`start_worker` has set up."""
    assert _mine is not None
    return _mine.score(predictions, references)
