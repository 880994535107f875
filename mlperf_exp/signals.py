"""SIGINT, SIGTERM and SIGHUP in the hands of whoever has to put something away first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


def ends() -> list[signal.Signals]:
    """The signals that ask a process to end; without SIGHUP where it is ignored, as under nohup."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give these signals to ``handler`` for a while; outside the main thread whoever started it handles them."""
    try:
        before = {number: signal.signal(number, handler) for number in ends()}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
