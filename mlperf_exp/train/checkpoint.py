"""Checkpoints that are whole or not used: written aside and moved, with a checksum in a file of its own.

``train/checkpoints/step-00000123.pt`` holds the network, the optimizer, the step and the job's identity, and is read
with ``weights_only``; ``step-00000123.json``, written after it, says how long it is and its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlperf_exp.errors import UserError
from mlperf_exp.files import write_json
from mlperf_exp.train.job import ANOTHER, Job


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint: what :func:`save` was given."""

    path: Path
    step: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    extra: dict[str, Any]


def folder(job: Job) -> Path:
    """Where a job's checkpoints are."""
    return job.folder / "checkpoints"


def save(job: Job, step: int, network: dict[str, Any], optimizer: dict[str, Any], extra: dict[str, Any]) -> Path:
    """Write a checkpoint after optimizer step ``step``, then drop the oldest beyond ``job.checkpoints_kept``."""
    target = folder(job) / f"step-{step:08d}.pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    state = {"step": step, "identity": job.identity(), "network": network, "optimizer": optimizer, "extra": extra}
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        facts = {"bytes": aside.stat().st_size, "sha256": _digest(aside), "step": step, "identity": job.identity()}
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    write_json(target.with_suffix(".json"), facts)
    for old in _all(job)[: -job.checkpoints_kept]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return target


def newest(job: Job) -> tuple[Saved | None, list[str]]:
    """The newest whole checkpoint, None where there is none; and a sentence for each one that is torn.

    Raises:
        UserError: it belongs to another job.
    """
    torn: list[str] = []
    for path in reversed(_all(job)):
        problem = _problem(path)
        if problem is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            _check_identity(path, state["identity"], job)
            return Saved(path, state["step"], state["network"], state["optimizer"], state["extra"]), torn
        torn.append(f"{path.name} is torn ({problem}): the one before it is used")
    return None, torn


def _all(job: Job) -> list[Path]:
    return sorted(folder(job).glob("step-*.pt"))


def _problem(path: Path) -> str | None:
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        if path.stat().st_size != facts["bytes"]:
            return f"{path.stat().st_size:,} of {facts['bytes']:,} bytes"
        return None if _digest(path) == facts["sha256"] else "another checksum"
    except (OSError, ValueError, KeyError, TypeError):
        return "no checksum beside it"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_identity(path: Path, found: dict[str, Any], job: Job) -> None:
    difference = job.difference(found)
    if difference is not None:
        raise UserError("resume", f"{path.name} {difference}", ANOTHER)
