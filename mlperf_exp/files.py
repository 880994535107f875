"""Files that are either whole or not there: written aside, synced, moved into place."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes, synced: bool = True) -> None:
    """Write ``content`` to ``path`` so that a reader, or a crash, never meets half of it.

    Args:
        path: the file.
        content: all of it.
        synced: wait for the disk, so that a power cut costs nothing; a busy disk takes a quarter of a second. Without
            it a reader still meets no half, and the system writes it within seconds.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; it names ``path``, which is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _write_aside(path, data, synced)
    except OSError as error:  # a failed write names no file, and the one aside means nothing to anybody
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_aside(path: Path, data: bytes, synced: bool) -> None:
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become null, for strict readers."""
    write_atomic(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
