"""What a compliance test left behind: LoadGen's rows of answers, and what our own verification says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from mlperf_exp import measure
from mlperf_exp.compliance.audit import contradictions
from mlperf_exp.errors import RunFailed

DETAIL, SUMMARY, ACCURACY = "mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_accuracy.json"


class Answer(msgspec.Struct, frozen=True):
    """One logged answer; ``data`` and ``token_data`` are hexadecimal, ``token_count`` what was reported as count."""

    qsl_idx: int
    data: str
    token_data: str | None = None
    token_count: int | None = None

    @property
    def payload(self) -> bytes:
        """The answer's bytes."""
        return bytes.fromhex(self.data)


def read_answers(path: Path) -> list[Answer]:
    """The rows of an ``mlperf_log_accuracy.json``.

    Raises:
        RunFailed: it is missing, cut short or no such log.
    """
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[Answer])
        for row in rows:
            bytes.fromhex(row.data + (row.token_data or ""))
    except OSError as error:
        raise RunFailed(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise RunFailed(f"{path} is cut short or broken: {error}") from None
    return rows


def detail(folder: Path, test: str) -> tuple[dict[str, Any], list[str]]:
    """A test's detail log, and the reasons why it is no finished run of ``test``."""
    logged = measure.read_detail_log(folder)
    if "result_validity" not in logged:
        return logged, [f"LoadGen did not come to its end in {folder.name}"]
    return logged, [f"LoadGen did not apply audit.config: {problem}" for problem in contradictions(test, logged)]
