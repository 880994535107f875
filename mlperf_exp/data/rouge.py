"""Accuracy of summaries, exactly as the reference computes it, in parallel.

Source: mlcommons/inference, ``language/llama3.1-8b/evaluation.py``. The targets that a score is held against are of the
same repository (``tools/submission/submission_checker/constants.py``); ``conf/model`` lists them, ``judge.py`` applies
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import SupportsInt

import nltk
import numpy as np

from mlperf_exp.data.rouge_pairs import METRICS, PairScorer, score_chunk, start_worker
from mlperf_exp.errors import RunFailed
from mlperf_exp.messages import Score

_CHUNK = 64  # pairs handed over at once: some tenths of a second, so that progress and Ctrl-C are prompt
_WORTH_A_PROCESS = 512  # pairs scored in about the time that a fresh process takes to import NLTK

Decode = Callable[[list[list[int]]], list[str]]
Progress = Callable[[int, int], None]
_Rows = tuple[list[tuple[float, ...]], int]


def score(
    outputs: Mapping[int, Iterable[SupportsInt]],
    references: Sequence[str],
    decode: Decode,
    processes: int | None = None,
    on_progress: Progress | None = None,
) -> Score:
    """Score one output a sample against the references.

    Args:
        outputs: output token ids by the sample's place in the data set; one entry a sample.
        references: the data set's reference texts.
        decode: turns lists of ids into texts, without special tokens (``batch_decode(..., skip_special_tokens=True)``).
            Called in this process, in small batches.
        processes: how many score at the same time; None: one a usable core, fewer where there is little to score.
        on_progress: called with (pairs done, pairs in all) about once a tenth of a second for each process.

    Returns:
        rouge1, rouge2, rougeL and rougeLsum as mean F-measure x 100 rounded to 4 decimals; gen_len, the characters of
        all outputs with one sentence a line; gen_num, the samples scored.

    Raises:
        RunFailed: there is nothing to score, or a scoring process died.
        IndexError: an output is of a sample that the data set does not have.
    """
    if not outputs:
        raise RunFailed("accuracy: no sample has an output, so there is nothing to score")
    stray = [index for index in outputs if not 0 <= index < len(references)]
    if stray:
        raise IndexError(f"output of sample {stray[0]}, and the data set has {len(references)}")
    here = PairScorer()
    notes = [here.note] if here.note else []
    if len(outputs) < len(references):
        notes.append(f"Only {len(outputs)} of the data set's {len(references)} samples have an output and are scored")
    wanted = processes or len(os.sched_getaffinity(0))
    workers = min(wanted, -(-len(outputs) // _WORTH_A_PROCESS))
    chunks = _chunks(outputs, references, decode)
    total = len(outputs)
    if workers == 1:
        results = _score_here(here, chunks, total, on_progress)
    else:
        results = _score_apart(workers, chunks, total, on_progress)
    rows = np.array([row for part, _ in results for row in part], dtype=np.float64)
    metrics: dict[str, float] = {
        # NumPy's rounding, not Python's: the reference rounds a NumPy scalar, and ties may differ.
        name: float(round(np.mean(rows[:, column]) * 100, 4))
        for column, name in enumerate(METRICS)
    }
    metrics["gen_len"] = sum(characters for _, characters in results)
    metrics["gen_num"] = total
    return Score(metrics, total, tuple(notes))


def accuracy_text(score: Score) -> str:
    """The line of ``accuracy.txt`` that MLCommons' submission checker reads.

    ROUGE in quotes and counts without, as the reference prints them; plain numbers, for the checker's patterns
    (``ACC_PATTERN`` in its ``constants.py``) match no ``np.float64(...)``.
    """
    line: dict[str, str | int] = {name: str(float(score.metrics[name])) for name in METRICS}
    line |= {name: int(score.metrics[name]) for name in ("gen_len", "gen_num")}
    return str(line)


def _chunks(
    outputs: Mapping[int, Iterable[SupportsInt]], references: Sequence[str], decode: Decode
) -> Iterator[tuple[list[str], list[str]]]:
    indices = list(outputs)
    for start in range(0, len(indices), _CHUNK):
        part = indices[start : start + _CHUNK]
        texts = decode([[int(token) for token in outputs[index]] for index in part])
        yield texts, [references[index] for index in part]


def _score_here(
    scorer: PairScorer, chunks: Iterator[tuple[list[str], list[str]]], total: int, on_progress: Progress | None
) -> list[_Rows]:
    results: list[_Rows] = []
    done = 0
    for chunk in chunks:
        results.append(scorer.score(*chunk))
        done += len(chunk[0])
        if on_progress:
            on_progress(done, total)
    return results


def _score_apart(
    workers: int, chunks: Iterator[tuple[list[str], list[str]]], total: int, on_progress: Progress | None
) -> list[_Rows]:
    # Spawned, not forked: this process may hold an engine, its threads and an accelerator's context. An executor, not a
    # multiprocessing.Pool: a pool waits for ever for a worker that the system killed.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (list(nltk.data.path),))
    try:
        futures: list[Future[_Rows]] = [pool.submit(score_chunk, *chunk) for chunk in chunks]
        done = 0
        for future in as_completed(futures):
            done += len(future.result()[0])
            if on_progress:
                on_progress(done, total)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise RunFailed(f"accuracy: a scoring process died ({error}); is the memory of this machine full?") from error
    finally:
        pool.shutdown(cancel_futures=True)
