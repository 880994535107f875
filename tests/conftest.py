"""What all tests need."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C, and nohup a
# hang-up; tests of signals want processes that begin as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("any machine", deadline=None)  # a busy one takes seconds for what is done in milliseconds
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def no_loadgen_left_behind() -> Iterator[None]:
    """A test that leaves a LoadGen running in this process would break the next one that starts it here."""
    yield
    loadgen = sys.modules.get("mlperf_exp.loadgen")
    assert loadgen is None or not loadgen.abandoned(), "this test left LoadGen running in the tests' own process"
