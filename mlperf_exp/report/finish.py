"""A run's report at its end: the page, and in ``result.json`` the list of the run's files."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from mlperf_exp.files import write_json

log = logging.getLogger(__name__)


def report(run_dir: Path, result: dict[str, Any]) -> None:
    """Write the report, then the record once more, with its files and what went wrong.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        from mlperf_exp.report import write_report

        write_report(run_dir, result)
    except Exception as error:  # a page must not cost a result
        log.exception("the report broke")
        result["verdict"]["warnings"] = [*result["verdict"]["warnings"], f"The report could not be made: {error}"]
    result["artifacts"] = artifacts(run_dir)
    write_json(run_dir / "result.json", result)


def artifacts(folder: Path) -> list[dict[str, Any]]:
    """The run's files with size and SHA-256; what Hydra and the running program still write to is left out."""
    skipped = {"result.json", "run.log", "tracking.log", "tracking.json", "engine.log", "mlflow_run.json", "run.lock"}
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.name not in skipped and not relative.name.startswith("."):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append({"path": str(relative), "bytes": path.stat().st_size, "sha256": digest})
    return found
