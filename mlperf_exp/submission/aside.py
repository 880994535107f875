"""A package's folder: written beside its place, and moved there whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlperf_exp.errors import UserError


def refuse_existing(out: Path) -> None:
    """Nothing is overwritten.

    Raises:
        UserError: ``out`` exists.
    """
    if out.exists() or out.is_symlink():
        raise UserError("--out", f"{out} exists", "Name a folder that does not exist yet")


@contextlib.contextmanager
def written(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, which becomes ``out`` where the block ends well and is removed where it does not.

    Raises:
        UserError: it cannot be written.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise UserError("--out", f"{out} cannot be written: {error.strerror}", "Name another folder") from None
    try:
        yield aside
        aside.chmod(0o755)
        aside.rename(out)
    except OSError as error:
        problem = f"{error.filename or out} cannot be written: {error.strerror}"
        raise UserError("--out", problem, "Make room, or name another folder") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
