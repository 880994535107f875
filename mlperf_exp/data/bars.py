"""A progress bar on stderr for work before a run: caching and training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


def nothing(done: int, total: int) -> None:
    """Shows nothing."""


@contextlib.contextmanager
def bar(label: str, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with what is done and how much there is; shows nothing where nobody looks."""
    if not enabled or not sys.stderr.isatty():
        yield nothing
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
