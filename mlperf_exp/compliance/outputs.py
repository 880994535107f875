"""TEST06: a language model's first token, its end of text and its token count are what it reports.

About 100 answers of a short performance run are logged. Three things must hold for each: the token that was reported as
first is the first of the answer (not in Offline, where none is reported); the answer ends with at most one
end-of-text token; the number of tokens reported is the number in the answer.

Stricter than the reference's verification: it knows all end-of-text ids of the model in use (the reference has one,
Llama 2's 2, and takes another that it is given for text, which no token equals), none of them may stand before the end,
a first token must have been reported, LoadGen must have applied the test's settings, and an empty log does not pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlperf_exp.compliance.logs import ACCURACY, Answer, detail, read_answers
from mlperf_exp.errors import RunFailed
from mlperf_exp.files import write_atomic
from mlperf_exp.messages import ComplianceTest

NAME = "TEST06"


def verify(folder: Path, offline: bool, end_ids: Collection[int]) -> ComplianceTest:
    """Verify the test whose logs are in ``folder``, and write ``verify_accuracy.txt`` there.

    Args:
        folder: LoadGen's logs of the test.
        offline: no first token is reported in the Offline scenario.
        end_ids: the model's end-of-text token ids.
    """
    _, reasons = detail(folder, NAME)
    first: bool | None = None
    end = count = False
    answers: list[Answer] = []
    try:
        answers = read_answers(folder / ACCURACY)
    except RunFailed as error:
        reasons.append(str(error))
    tokens: list[NDArray[np.int32]] = []
    if answers and not reasons:
        try:
            tokens = [np.frombuffer(answer.payload, dtype=np.int32) for answer in answers]
        except ValueError:
            reasons.append("the answers are no int32 token ids")
    elif not answers and not reasons:
        reasons.append("no answer was logged")
    if tokens:
        first_wrong = [] if offline else _first_tokens(answers, tokens)
        end_wrong = _ends(answers, tokens, end_ids)
        count_wrong = _counts(answers, tokens)
        reasons += first_wrong + end_wrong + count_wrong
        first, end, count = None if offline else not first_wrong, not end_wrong, not count_wrong
    elif not offline:
        first = False
    passed = not reasons
    said = {None: "Skipped", True: "True", False: "False"}
    lines = [
        f"First token check pass: {said[first]}",
        f"EOS check pass: {end}",
        f"Sample length check pass: {count}",
        f"{NAME} verification {'complete' if passed else 'failed'}",
    ]
    write_atomic(folder / "verify_accuracy.txt", "\n".join(lines) + "\n")  # the submission checker reads these lines
    checks = {"first_token": first, "end_of_text": end, "token_count": count}
    return ComplianceTest(NAME, passed, checks, folder, {"samples": float(len(answers))}, tuple(reasons))


def _first_tokens(answers: Sequence[Answer], tokens: Sequence[NDArray[np.int32]]) -> list[str]:
    """Answers whose first token is not the one reported, in one clause."""
    wrong = []
    for answer, ids in zip(answers, tokens, strict=True):
        reported = np.frombuffer(bytes.fromhex(answer.token_data or ""), dtype=np.int32)
        if not len(reported) or not np.array_equal(reported, ids[: len(reported)]):
            wrong.append(f"{reported.tolist()} and not {ids[:1].tolist()} for sample {answer.qsl_idx}")
    return [f"{len(wrong)} of {len(answers)} first tokens were reported wrong, such as {wrong[0]}"] if wrong else []


def _ends(answers: Sequence[Answer], tokens: Sequence[NDArray[np.int32]], end_ids: Collection[int]) -> list[str]:
    """Answers with an end-of-text token before their last token, in one clause."""
    wrong = [
        answer.qsl_idx
        for answer, ids in zip(answers, tokens, strict=True)
        if np.isin(ids[:-1], np.array(sorted(end_ids), dtype=np.int64)).any()
    ]
    return (
        [f"{len(wrong)} of {len(answers)} answers go on after their end of text, such as sample {wrong[0]}'s"]
        if wrong
        else []
    )


def _counts(answers: Sequence[Answer], tokens: Sequence[NDArray[np.int32]]) -> list[str]:
    """Answers whose length is not the one reported, in one clause."""
    wrong = [
        f"{answer.token_count} instead of {len(ids)} for sample {answer.qsl_idx}"
        for answer, ids in zip(answers, tokens, strict=True)
        if answer.token_count != len(ids)
    ]
    return [f"{len(wrong)} of {len(answers)} token counts were reported wrong, such as {wrong[0]}"] if wrong else []
