"""``python -m mlperf_exp.sweep SWEEP_DIR``: where a sweep stands; with ``--resume``, run what is left of it.

Exit status 0; 2 where the folder holds no sweep; with ``--resume`` that of the sweep.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlperf_exp.sweep import record
from mlperf_exp.sweep.text import count_line


def main() -> int:
    """Show or continue a sweep; see the module."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.sweep", description="Show a sweep, or run what is left.")
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR")
    parser.add_argument("--resume", action="store_true", help="run the jobs that have not finished")
    args = parser.parse_args()
    folder: Path = args.sweep_dir.absolute()
    swept = record.read(folder)
    if not swept:
        print(f"mlperf_exp: SWEEP_DIR: {folder} holds no sweep.json that can be read. Give a sweep's folder")
        return 2
    if args.resume:
        words = swept["command"]
        words = words[words.index("mlperf_exp") + 1 :] if "mlperf_exp" in words else words[2:]
        os.chdir(swept["cwd"])
        os.execv(sys.executable, [sys.executable, "-m", "mlperf_exp", *words, f"hydra.sweep.dir={folder}"])
    console = Console(highlight=False)
    console.print(table(swept))
    console.print(count_line(swept["counts"], swept["remaining_s"]))
    return 0


def table(swept: dict[str, Any]) -> Table:
    """A row for each job of ``sweep.json``."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("Job", "Settings", "Status", "Outcome", "Attempt", "Seconds", "Folder"):
        found.add_column(name, overflow="fold")
    for job in swept["jobs"]:
        own = " ".join(f"{key}={value}" for key, value in job["own"].items())
        seconds = "" if job["seconds"] is None else f"{job['seconds']:.0f}"
        status = "finished earlier" if job["earlier"] else job["status"]
        row = (str(job["number"]), own, status, job["outcome"] or "", str(job["attempt"]), seconds, job["folder"] or "")
        found.add_row(*row)
    return found


if __name__ == "__main__":
    sys.exit(main())
