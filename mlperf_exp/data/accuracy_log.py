"""LoadGen's ``mlperf_log_accuracy.json``: the outputs of an accuracy test, by sample."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlperf_exp.errors import RunFailed


class _Row(msgspec.Struct):
    qsl_idx: int
    data: str  # hexadecimal


def read_accuracy_log(path: Path) -> dict[int, NDArray[np.int32]]:
    """Output token ids (int32, any length) by the sample's place in the data set, in the log's order.

    LoadGen may log a sample more than once; the first row counts, as in the reference.

    Raises:
        RunFailed: the log is missing, cut short, or its data are no int32.
    """
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[_Row])
    except OSError as error:
        raise RunFailed(f"accuracy log {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunFailed(
            f"accuracy log {path} is cut short or broken: {error} (submission trees keep only its first 10 KiB)"
        ) from None
    outputs: dict[int, NDArray[np.int32]] = {}
    for row in rows:
        if row.qsl_idx in outputs:
            continue
        try:
            outputs[row.qsl_idx] = np.frombuffer(bytes.fromhex(row.data), dtype=np.int32)
        except ValueError as error:
            raise RunFailed(f"accuracy log {path}: data of sample {row.qsl_idx} are no int32 ids: {error}") from None
    return outputs
