"""What Slurm says of TorchX's applications: TorchX itself tells only that one failed, and finds none by its name."""

from __future__ import annotations

import subprocess

from hydra_plugins.mlperf_launchers._cluster import Kind, State

# Slurm's own words for ends that TorchX only calls FAILED.
_SLURM_ENDS = {
    "BOOT_FAIL": Kind.lost,
    "NODE_FAIL": Kind.lost,
    "PREEMPTED": Kind.preempted,
    "REVOKED": Kind.lost,
    "TIMEOUT": Kind.timeout,
    "DEADLINE": Kind.timeout,
}


def slurm_end(kind: Kind, number: str, nodes: tuple[str, ...]) -> State:
    """The end of a Slurm job in Slurm's own words, over all parts of it."""
    rows = [line.split("|") for line in sacct("State,ExitCode", "-j", number).splitlines()]
    words = [row[0].split()[0].rstrip("+") for row in rows if row[0]]
    for word in words:
        if word in _SLURM_ENDS:
            return State(_SLURM_ENDS[word], word, nodes=nodes)
    worst = next((word for word in words if word != "COMPLETED"), "")
    codes = [int(row[1].partition(":")[0]) for row in rows if len(row) > 1 and row[1]]
    return State(kind, worst, next((code for code in codes if code), 0 if codes else None), nodes)


def sacct(columns: str, *which: str) -> str:
    """Columns of the accounting, a row a part of a job."""
    words = ["sacct", "-X", "-n", "-P", "-o", columns, *which]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
