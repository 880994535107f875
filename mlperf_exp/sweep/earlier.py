"""What earlier starts of a sweep left in its folder: runs that finished, runs that failed, and halves.

The runs' own ``result.json`` are asked, so that a sweep can be continued when ``sweep.json`` is lost or torn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlperf_exp.track.tracker import read_object

RESULT_SCHEMA = 1


@dataclass(slots=True)
class Earlier:
    """See the module. ``odd`` names the folders of which nothing can be used, each with the reason."""

    finished: dict[str, list[Path]] = field(default_factory=dict)  # plan hash -> folders, each for one job
    failed: Counter[str] = field(default_factory=Counter)  # plan hash -> attempts that failed
    odd: dict[Path, str] = field(default_factory=dict)

    def take(self, plan_hash: str | None, preferred: Path) -> Path | None:
        """A folder with a finished run of this plan, which no other job has taken: its own one where possible."""
        folders = self.finished.get(plan_hash or "", [])
        if not folders:
            return None
        return folders.pop(folders.index(preferred) if preferred in folders else 0)


def look(sweep_dir: Path, recorded: Mapping[str, Any]) -> Earlier:
    """Read the folder; ``recorded`` is the old ``sweep.json``, which knows of jobs that died without a word."""
    found = Earlier()
    silent = {sweep_dir / str(job["folder"]): job for job in recorded.get("jobs") or () if job.get("folder")}
    for folder in sorted(path for path in sweep_dir.iterdir() if path.is_dir() and _is_run(path)):
        result = read_object(folder / "result.json")
        run = result.get("run") or {}
        plan_hash, status = run.get("plan_hash"), run.get("status")
        if not result:
            job = silent.get(folder, {})
            if job.get("status") == "failed" and job.get("plan_hash"):
                found.failed[job["plan_hash"]] += 1
            found.odd[folder] = "it holds no whole result"
        elif result.get("schema") != RESULT_SCHEMA or not plan_hash:
            found.odd[folder] = f"its result is of schema {result.get('schema', 0)}, and this is {RESULT_SCHEMA}"
        elif status == "finished":
            found.finished.setdefault(plan_hash, []).append(folder)
        elif status == "failed":
            found.failed[plan_hash] += 1
    return found


def free_folder(wanted: Path) -> Path:
    """``wanted``, or with ``.2``, ``.3``, ... the first beside it in which no run was begun."""
    folder, attempt = wanted, 1
    while folder.exists() and _is_run(folder):
        attempt += 1
        folder = wanted.with_name(f"{wanted.name}.{attempt}")
    return folder


def _is_run(folder: Path) -> bool:
    names = ("result.json", "run.lock", "config.yaml", "live.jsonl", "run.log")
    return any((folder / name).exists() for name in names)
