"""The core of the launcher ``local``: a sweep's folder, and batch after batch of jobs (``_batch.py``).

Results are in the jobs' order, whatever the order of their ends. Hydra raises the first failure among them at the end:
the exit status of a sweep is that of the first job that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra_plugins.mlperf_launchers import _summary
from hydra_plugins.mlperf_launchers._batch import Batch
from hydra_plugins.mlperf_launchers._chosen import refuse_launchers
from hydra_plugins.mlperf_launchers._sweep import Sweep

from mlperf_exp.errors import Interrupted, UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers.local import LocalLauncher

_LATE_S = 10.0  # a job that is ended by force takes so much longer than its grace


def check(launcher: LocalLauncher) -> None:
    """Refuse values that no sweep can run with.

    Raises:
        UserError: naming the key.
    """
    if launcher.max_parallel < 1:
        raise UserError("hydra.launcher.max_parallel", f"{launcher.max_parallel} jobs at once", "Give 1 or more")
    if launcher.timeout_s is not None and not launcher.timeout_s > 0:
        raise UserError(
            "hydra.launcher.timeout_s", f"{launcher.timeout_s:g} s", "Give more than 0, or null for no limit"
        )
    if launcher.retries < 0:
        raise UserError("hydra.launcher.retries", f"{launcher.retries} times", "Give 0 or more")
    if not launcher.grace_s >= 0:
        raise UserError("hydra.launcher.grace_s", f"{launcher.grace_s:g} s", "Give 0 or more")
    for name, value in launcher.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise UserError("hydra.launcher.env", f"{name!r} cannot be an environment variable", "Name it otherwise")


def launch(launcher: LocalLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
    """Run the jobs, show the summary, return the results in order.

    Raises:
        UserError: before anything was started: another sweep writes to the folder, or a job chooses a launcher.
        Interrupted: by a signal, after all that ran has ended.
    """
    assert launcher.config is not None
    setup_globals()
    assert launcher.hydra_context is not None
    refuse_launchers(launcher.config, launcher.hydra_context, job_overrides)
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    sweep_dir = Path(str(launcher.config.hydra.sweep.dir))
    if launcher.sweep is None:
        launcher.sweep = Sweep(
            sweep_dir, launcher.config, launcher.max_parallel, launcher.retries, launcher.grace_s + _LATE_S
        )
    batch = Batch(launcher, launcher.sweep, job_overrides, first)
    try:
        batch.run()
    finally:
        batch.close()
    if launcher.open_for is None:
        _summary.show(batch.rows, sweep_dir)
    if batch.interrupted:
        raise Interrupted(_summary.interruption(batch.rows, sweep_dir))
    return [result for result in batch.results if result is not None]


def finish(launcher: LocalLauncher) -> None:
    """Close a sweep that was kept open, and stop its last engine."""
    launcher.open_for = None
    if launcher.sweep is not None:
        batch = Batch(launcher, launcher.sweep, [], len(launcher.sweep.record.jobs))
        try:
            batch.run()
        finally:
            batch.close()
