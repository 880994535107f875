"""``python -m mlperf_exp.jobs {list,attach,cancel} FOLDER``: a sweep's jobs on other machines, from any terminal.

``list`` shows where each job stands, as the system itself says now. ``attach`` goes on where a launcher that was killed
or disconnected has left off: it awaits, fetches, retries and submits the rest, and ends with the sweep's table.
``cancel`` ends every job, waits until the system confirms it, and says what could not be ended. ``FOLDER`` is the
sweep's, with ``jobs.json`` in it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlperf_exp.errors import ExperimentError, Interrupted, RunFailed, UserError

if TYPE_CHECKING:
    from hydra_plugins.mlperf_launchers._ledger import Ledger
    from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf


def main() -> int:
    """The command. Exit status: 0; 1 a job failed, or did not end; 2 the user's mistake; 130 interrupted."""
    parser = argparse.ArgumentParser("python -m mlperf_exp.jobs", description="A sweep's jobs on other machines.")
    parser.add_argument("verb", choices=("list", "attach", "cancel"))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the sweep's folder, which holds jobs.json")
    args = parser.parse_args()
    try:
        return {"list": show, "attach": attach, "cancel": cancel}[args.verb](args.folder.absolute())
    except ExperimentError as error:
        print(f"mlperf_exp: {error}", file=sys.stderr)
        return error.exit_status


def show(folder: Path) -> int:
    """Print a line a job: the system's own word now where it answers, else what was known last."""
    from hydra_plugins.mlperf_launchers._cluster import Unreachable, connect
    from hydra_plugins.mlperf_launchers._job import describe
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ledger, settings = _read(folder)
    last = [entry.tries[-1] for entry in ledger.entries if entry.status == "submitted" and entry.tries]
    with contextlib.closing(connect(ledger.launcher, settings)) as cluster:
        try:
            states = cluster.states([note.attempt for note in last if note.attempt.id])
        except Unreachable as error:
            print(f"mlperf_exp: {ledger.launcher} does not answer; this was known last: {error}", file=sys.stderr)
            states = {}
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Job", "Overrides", "Status", "Id", "State", "Nodes", "Why"):
        table.add_column(name, overflow="fold")
    for entry in ledger.entries:
        note = entry.tries[-1] if entry.tries else None
        state = states.get(str(note.attempt.id)) if note else None
        table.add_row(
            note.attempt.name if note else str(entry.spec.number),
            Text(describe(entry.spec.overrides)),
            entry.status,
            (note.attempt.id or "") if note else "",
            state.kind.name if state else note.state if note else "",
            ", ".join(state.nodes if state and state.nodes else note.nodes if note else ()),
            Text(state.reason if state and state.reason else note.reason if note else ""),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)
    here = f"nobody watches them now: python -m mlperf_exp.jobs attach {folder}"
    watched = here if _free(ledger) else "a process watches them"
    console.print(f"{ledger.launcher}, {ledger.folder}; {watched}", soft_wrap=True)
    return 0


def attach(folder: Path) -> int:
    """Go on with the sweep."""
    return _drive(folder, cancelling=False)


def cancel(folder: Path) -> int:
    """End every job: by the process that watches them where there is one, else here."""
    ledger, settings = _read(folder)
    if _free(ledger):
        return _drive(folder, cancelling=True)
    ledger.want_cancel(True)
    print("mlperf_exp: told the process that watches the jobs, waiting for it", file=sys.stderr)
    until = time.monotonic() + settings.grace_s + 120
    while not _free(ledger):
        if time.monotonic() > until:
            raise UserError("FOLDER", "the process that watches the jobs does not answer", "End it, then cancel again")
        time.sleep(0.2)
    after, _ = _read(folder)
    left = [one.attempt for entry in after.entries for one in entry.tries[-1:] if one.state == "not cancelled"]
    for attempt in left:
        print(f"mlperf_exp: job {attempt.name}: {attempt.id} did not end and may still run", file=sys.stderr)
    return 1 if left else 0


def _drive(folder: Path, cancelling: bool) -> int:
    from hydra_plugins.mlperf_launchers._cluster import connect
    from hydra_plugins.mlperf_launchers._remote import drive

    ledger, settings = _read(folder)
    if Path(ledger.cwd).is_dir():
        os.chdir(ledger.cwd)  # relative paths of jobs that are still to be submitted count from there
    with contextlib.closing(connect(ledger.launcher, settings)) as cluster:
        try:
            outcomes = drive(cluster, settings, ledger, cancelling)
        except Interrupted:
            if cancelling:
                return 0
            raise
    failed = [outcome for outcome in outcomes if isinstance(outcome.error, RunFailed | UserError)]
    return 1 if failed else 0


def _read(folder: Path) -> tuple[Ledger, RemoteLauncherConf]:
    import hydra_plugins.mlperf_launchers as launchers
    from hydra.core.config_store import ConfigStore
    from hydra_plugins.mlperf_launchers._ledger import Ledger
    from hydra_plugins.mlperf_launchers._remote_config import RemoteLauncherConf
    from omegaconf import OmegaConf

    ledger = Ledger.read(folder)
    importlib.import_module(f"{launchers.__name__}.{ledger.launcher}")
    schema = ConfigStore.instance().load(f"hydra/launcher/{ledger.launcher}.yaml").node
    settings = OmegaConf.to_object(OmegaConf.merge(schema, ledger.settings))
    assert isinstance(settings, RemoteLauncherConf)
    return ledger, settings


def _free(ledger: Ledger) -> bool:
    with ledger.driven() as free:
        return free


if __name__ == "__main__":
    sys.exit(main())
