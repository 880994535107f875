"""A foreign result as the folder of a run: ``result.json`` of schema 1, finished, never valid."""

from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlperf_exp import environment
from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.importer.formats import Foreign

SOURCE = "foreign"  # the folder in which the imported file itself is kept


def write(foreign: Foreign, file: Path, place: int, runs: Path, tracking: dict[str, Any]) -> Path:
    """Write the run's folder below ``runs``; the same file makes the same folder.

    Args:
        foreign: the result.
        file: where it comes from; a copy is kept.
        place: which of the file's results it is, from 0.
        runs: the folder of all runs, made if missing.
        tracking: the configuration of MLflow, as in a run's own.

    Raises:
        UserError: it was imported before, or cannot be written.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = runs / f"imported-{digest[:12]}{f'-{place}' if place else ''}"
    if folder.exists():
        raise UserError("FILE", f"{file} was imported before: {folder}", "Remove that folder to import it again")
    try:
        (folder / SOURCE).mkdir(parents=True)
        shutil.copyfile(file, folder / SOURCE / file.name)
        write_json(folder / "result.json", _result(foreign, folder.name, file, digest, tracking))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        problem = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise UserError("--runs", problem, "Name a folder that can be written") from None
    return folder


def _result(foreign: Foreign, run_id: str, file: Path, digest: str, tracking: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    ended = datetime.fromisoformat(foreign.ended_at) if foreign.ended_at else at
    started = ended - timedelta(seconds=foreign.duration_s or 0.0)
    reason = f"imported from {foreign.tool}: not run by LoadGen, so that MLPerf's rules cannot be applied to it."
    return {
        "schema": 1,
        "run": {
            "id": run_id,
            "name": foreign.name,
            "status": "finished",
            "error": None,
            "foreign": foreign.tool,
            "command": [],
            "overrides": [],
            "started_at": started.isoformat(timespec="milliseconds"),
            "ended_at": ended.isoformat(timespec="milliseconds"),
        },
        "plan": {
            "config": {
                "name": foreign.name,
                "model": {"name": foreign.model or "unknown"},
                "dataset": {"name": "unknown"},
                "hw": {"name": "unknown"},
                "scenario": {"name": "foreign", "target_qps": foreign.metrics.get("target_qps")},
                "backend": {"name": foreign.tool},
                "division": "open",
                "tracking": tracking,
            },
            "engine": {},
            "modes": [],
            "derived": [],
            "warnings": [],
        },
        # of the machine that imports: where the result was made, its file does not say
        "environment": {**dict.fromkeys(environment.describe()), "gpus": [], "packages": {}},
        "verdict": {
            "valid": False,
            "reasons": [reason],
            "accuracy": {"measured": False, "passed": None},
            "compliance": {},
            "warnings": [],
        },
        "metrics": foreign.metrics,
        "phases": {"total_s": foreign.duration_s} if foreign.duration_s else {},
        "tests": {},
        "artifacts": [{"path": f"{SOURCE}/{file.name}", "bytes": file.stat().st_size, "sha256": digest}],
    }
