"""What all tests need."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C, and nohup a
# hang-up; tests of signals want processes that begin as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("any machine", deadline=None)  # a busy one takes seconds for what is done in milliseconds
settings.load_profile("any machine")
