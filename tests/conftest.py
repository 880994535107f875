"""What all tests need."""

from __future__ import annotations

import signal

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C, and nohup a
# hang-up; tests of signals want processes that begin as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
