"""SQuAD v1.1: questions on texts as token pieces, and the official F1 and exact match of what was answered.

A text that is too long beside its question is cut into overlapping pieces, each a sample of its own. An answer is the
best pair of a start and an end among the 20 best of each, at most ``max_answer_tokens`` long, over all pieces in which
its tokens have the most context. Sources: mlcommons/inference, ``language/bert`` (``create_squad_data.py``,
``accuracy-squad.py``, ``evaluate_v1.1.py``). One thing differs: the answer's text is cut out of the original by
character offsets, where the reference aligns words.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.config import ExtractiveQa
from mlperf_exp.data.bars import nothing
from mlperf_exp.data.tokens import Tokens
from mlperf_exp.errors import RunFailed, UserError
from mlperf_exp.files import write_json

_KEY = "dataset.path"
_BEST = 20  # starts and ends looked at
_ARRAYS = ("values", "begins", "spans", "best", "owners")
_FORMAT = "Give a file in SQuAD v1.1's format: {data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}"


class Question(NamedTuple):
    """One question with its text and the answers that people gave."""

    id: str
    text: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """All samples: their tokens, and for each token where it stands in its text.

    ``spans`` is int32 ``[tokens, 2]``, the characters from and to, -1 outside of the text; ``best`` says in which piece
    a token has the most context; ``owners`` gives each piece's question.
    """

    tokens: Tokens
    spans: NDArray[np.int32]
    best: NDArray[np.bool_]
    owners: NDArray[np.int32]


def read(path: Path) -> list[Question]:
    """The file's questions.

    Raises:
        UserError: it is missing or broken, or a text or a question is empty; says where.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
    except FileNotFoundError:
        raise UserError(_KEY, f"{path} does not exist", "Fetch SQuAD's dev-v1.1.json there, or name a file") from None
    except OSError as error:
        raise UserError(_KEY, f"{path} cannot be read ({error.strerror})", "Name a readable file") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(_KEY, f"{path} is broken: {type(error).__name__}: {error}", _FORMAT) from None
    found = []
    try:
        for article, entry in enumerate(data):
            for number, paragraph in enumerate(entry["paragraphs"]):
                where = f"{path}: article {article}, paragraph {number} (from 0)"
                if not paragraph["context"].strip():
                    raise UserError(_KEY, f"{where} has an empty context", "Take the paragraph out")
                for qa in paragraph["qas"]:
                    answers = tuple(answer["text"] for answer in qa["answers"])
                    if not qa["question"].strip():
                        raise UserError(_KEY, f"{where}: question {qa['id']} is empty", "Take the question out")
                    if not answers:
                        raise UserError(_KEY, f"{where}: question {qa['id']} has no answer", "Use SQuAD v1.1, not v2.0")
                    found.append(Question(str(qa["id"]), paragraph["context"], qa["question"], answers))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(_KEY, f"{path} lacks {error}", _FORMAT) from None
    if not found:
        raise UserError(_KEY, f"{path} holds no question", _FORMAT)
    return found


def tokenizer(folder: Path) -> Any:
    """The encoder's tokenizer: ``tokenizer.json``, or ``vocab.txt`` read as BERT's uncased one.

    Raises:
        UserError: neither is there, or it cannot be read.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.txt").is_file():
            return BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    except Exception as error:  # the library raises nothing narrower
        raise UserError("model.path", f"{folder}: its tokenizer cannot be read: {error}", "Fetch it again") from None
    raise UserError("model.path", f"{folder} has no tokenizer.json or vocab.txt", "Give the whole folder of the model")


def pieces(
    questions: Sequence[Question],
    model: ExtractiveQa,
    tokenize: Any,
    on_progress: Callable[[int, int], None] = nothing,
) -> Pieces:
    """Cut every question and its text into samples."""
    first, last = tokenize.token_to_id("[CLS]"), tokenize.token_to_id("[SEP]")
    if first is None or last is None:
        raise UserError("model.path", "the tokenizer has no [CLS] and [SEP]", "Give BERT's own")
    values: list[NDArray[np.int32]] = []
    spans: list[NDArray[np.int32]] = []
    best: list[NDArray[np.bool_]] = []
    owners: list[int] = []
    texts: dict[str, tuple[list[int], NDArray[np.int32]]] = {}
    for owner, question in enumerate(questions):
        asked = tokenize.encode(question.question, add_special_tokens=False).ids[: model.max_question_tokens]
        if question.text not in texts:  # many questions share one
            coded = tokenize.encode(question.text, add_special_tokens=False)
            texts[question.text] = coded.ids, np.array(coded.offsets, dtype=np.int32).reshape(-1, 2)
        ids, offsets = texts[question.text]
        room = model.max_tokens - len(asked) - 3
        starts = _starts(len(ids), room, model.stride)
        for begin in starts:
            end = min(begin + room, len(ids))
            sample = [first, *asked, last, *ids[begin:end], last]
            head = len(asked) + 2
            rows = np.zeros((len(sample), 2), dtype=np.int32)
            rows[:, 0] = sample
            rows[head:, 1] = 1
            span = np.full((len(sample), 2), -1, dtype=np.int32)
            span[head:-1] = offsets[begin:end]
            most = np.zeros(len(sample), dtype=bool)
            most[head:-1] = [_has_most_context(starts, begin, room, len(ids), place) for place in range(begin, end)]
            values.append(rows)
            spans.append(span)
            best.append(most)
            owners.append(owner)
        on_progress(owner + 1, len(questions))
    begins = np.concatenate([[0], np.cumsum([len(rows) for rows in values])]).astype(np.int64)
    made = Tokens(np.concatenate(values), begins)
    if int(made.values[:, 0].max()) >= model.vocab_size:
        problem = f"the tokenizer gives token {int(made.values[:, 0].max())}, and {model.name} has {model.vocab_size}"
        raise UserError("model.path", problem, "Give the tokenizer that belongs to the model")
    return Pieces(made, np.concatenate(spans), np.concatenate(best), np.array(owners, dtype=np.int32))


def _starts(length: int, room: int, stride: int) -> list[int]:
    starts = [0]
    while starts[-1] + room < length:
        starts.append(starts[-1] + min(room, stride))
    return starts


def _has_most_context(starts: Sequence[int], begin: int, room: int, length: int, place: int) -> bool:
    """Whether of all pieces that hold a token this one has the most tokens on its poorer side."""
    if len(starts) == 1:
        return True
    scores = [
        min(place - other, min(other + room, length) - 1 - place) + 0.01 * (min(other + room, length) - other)
        for other in starts
        if other <= place < min(other + room, length)
    ]
    end = min(begin + room, length)
    own = min(place - begin, end - 1 - place) + 0.01 * (end - begin)
    holders = [other for other in starts if other <= place < min(other + room, length)]
    return own == max(scores) and holders[scores.index(own)] == begin


def cached(
    path: Path, questions: Sequence[Question], model: ExtractiveQa, folder: Path, cache: Path, on_progress: Any
) -> Pieces:
    """:func:`pieces`, kept as arrays that are mapped from files; made again when the data or the tokenizer change."""
    digest = hashlib.sha256(path.read_bytes())
    for name in ("tokenizer.json", "vocab.txt"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    digest.update(f"{model.max_tokens} {model.stride} {model.max_question_tokens} {len(questions)} 1".encode())
    place = cache / f"questions-{digest.hexdigest()[:16]}"
    try:
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        whole = json.loads((place / "cache.json").read_text())["checksum"] == _checksum(arrays)
    except (OSError, ValueError, KeyError):
        whole = False
    if whole:
        return Pieces(Tokens(arrays["values"], arrays["begins"]), arrays["spans"], arrays["best"], arrays["owners"])
    made = pieces(questions, model, tokenizer(folder), on_progress)
    fresh: dict[str, Any] = dict(zip(_ARRAYS, (*made.tokens, made.spans, made.best, made.owners), strict=True))
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for name, array in fresh.items():
            np.save(aside / f"{name}.npy", array)
        write_json(aside / "cache.json", {"checksum": _checksum(fresh), "questions": len(questions)})
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
    except OSError as error:
        problem = f"{error.filename or place}: {error.strerror}"
        raise UserError("dataset.cache", problem, "Give a folder with room: dataset.cache=FOLDER") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made


def _checksum(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in _ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def best_answers(
    logits: Mapping[int, NDArray[np.float32]], made: Pieces, questions: Sequence[Question], max_answer_tokens: int
) -> dict[int, str]:
    """The answer to each question of which a piece was computed; ``logits`` by sample, ``[tokens, 2]``."""
    found: dict[int, tuple[float, str]] = {}
    for sample, both in logits.items():
        begin, end = int(made.tokens.begins[sample]), int(made.tokens.begins[sample + 1])
        if len(both) != end - begin:
            raise RunFailed(f"accuracy: sample {sample} has {len(both)} logits for {end - begin} tokens")
        span, most = made.spans[begin:end], made.best[begin:end]
        starts = np.argsort(-both[:, 0], kind="stable")[:_BEST]
        ends = np.argsort(-both[:, 1], kind="stable")[:_BEST]
        length = ends[None, :] - starts[:, None] + 1
        possible = (length >= 1) & (length <= max_answer_tokens)
        possible &= (most[starts] & (span[starts, 0] >= 0))[:, None] & (span[ends, 1] >= 0)[None, :]
        owner = int(made.owners[sample])
        found.setdefault(owner, (-np.inf, "empty"))  # the reference's answer where no pair is possible
        if not possible.any():
            continue
        total = np.where(possible, both[starts, 0][:, None] + both[ends, 1][None, :], -np.inf)
        row, column = np.unravel_index(int(total.argmax()), total.shape)
        if total[row, column] > found[owner][0]:
            text = questions[owner].text[span[starts[row], 0] : span[ends[column], 1]]
            found[owner] = float(total[row, column]), text
    return {owner: text for owner, (_, text) in found.items()}


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and needless spaces; as the official script."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(answer: str, truth: str) -> float:
    """The harmonic mean of precision and recall over words."""
    given, wanted = normalize(answer).split(), normalize(truth).split()
    same = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    return 2.0 * same / (len(given) + len(wanted)) if same else 0.0


def scores(answers: Mapping[int, str], questions: Sequence[Question]) -> dict[str, float]:
    """``exact_match`` and ``f1`` in per cent over the questions that have an answer, the best of each one's truths."""
    exact = sum(
        max(normalize(text) == normalize(truth) for truth in questions[n].answers) for n, text in answers.items()
    )
    overlap = sum(max(f1(text, truth) for truth in questions[n].answers) for n, text in answers.items())
    return {"exact_match": 100.0 * exact / len(answers), "f1": 100.0 * overlap / len(answers)}
