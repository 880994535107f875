"""The display on a real pseudo-terminal, in a pipe, and where nobody reads any more."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mlperf_exp.display import Display, number, seconds
from mlperf_exp.records import Live

NAN = float("nan")
LIVE = Live(12.0, 70, 40, 2, 4000, 3.3, 1234.5, 20.0, 35.5, 5.25, NAN)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, io.TextIOWrapper]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    controller, terminal = pty.openpty()
    stream = open(terminal, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - a descriptor that a test may close
    yield controller, stream
    for close in (stream.close, lambda: os.close(controller)):
        with contextlib.suppress(OSError):
            close()


def read(controller: int) -> str:
    data = b""
    while select.select([controller], [], [], 0.2)[0]:
        data += os.read(controller, 65536)
    return data.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_what_is_going_on(terminal: tuple[int, io.TextIOWrapper]) -> None:
    controller, stream = terminal
    with Display(True, stream) as display:
        display.phase("performance", expected=100, expected_s=60)
        display.update(LIVE)
        time.sleep(0.3)
        display.update(LIVE)
        shown = plain(read(controller))
        assert "performance" in shown
        assert "40/100 queries" in shown
        assert "1,234 tokens/s" in shown
        assert "TTFT p50 20 p99 35.5 ms" in shown
        assert "TPOT p50 5.25 p99 – ms" in shown  # NaN
        assert "2 errors" in shown
        assert re.search(r"0\.\d s, (1:00 min|60 s|59 s) left", shown)
        display.score(5, 64)
        time.sleep(0.3)
        display.score(6, 64)
        assert "6/64 samples" in plain(read(controller))
    last = plain(read(controller))
    assert "score: " in last
    assert sys.stderr.__class__.__name__ != "FileProxy", "the terminal is given back"


def test_the_clock_goes_on_while_nothing_is_reported(terminal: tuple[int, io.TextIOWrapper]) -> None:
    controller, stream = terminal
    with Display(True, stream) as display:
        display.phase("start")
        time.sleep(2.3)
        times = re.findall(r"(\d\.\d) s", plain(read(controller)))
    assert len(set(times)) >= 3
    assert float(times[-1]) >= 1.9


def test_a_terminal_is_refreshed_four_times_a_second_at_most(terminal: tuple[int, io.TextIOWrapper]) -> None:
    controller, stream = terminal
    with Display(True, stream) as display:
        display.phase("performance", expected=100)
        read(controller)
        started, cpu = time.monotonic(), time.process_time()
        while time.monotonic() - started < 1.5:
            display.update(LIVE)
            time.sleep(0.001)
        shown = plain(read(controller))
        cpu = time.process_time() - cpu
    assert 2 <= shown.count("tokens/s") <= 7
    assert cpu < 0.75  # a thousand updates a second; a real run makes one


def test_a_terminal_that_goes_away_ends_the_display_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    controller, terminal = pty.openpty()
    stream = open(terminal, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - closing it may fail
    stderr, stdout = sys.stderr, sys.stdout
    display = Display(True, stream)
    display.phase("performance", expected=100)
    os.close(controller)
    for _ in range(3):
        time.sleep(0.3)
        display.update(LIVE)
    display.phase("accuracy", expected=64)
    display.score(1, 2)
    display.close()
    assert (sys.stderr, sys.stdout) == (stderr, stdout)
    with contextlib.suppress(OSError):
        stream.close()


def test_elsewhere_a_line_at_each_change_and_one_a_period() -> None:
    stream = io.StringIO()
    display = Display(True, stream, plain_period_s=0.5)
    display.phase("performance", expected=100, expected_s=60)
    started = time.monotonic()
    while time.monotonic() - started < 1.3:
        display.update(LIVE)
        time.sleep(0.01)
    display.phase("score")
    display.close()
    display.close()
    display.update(LIVE)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[performance] 100 queries expected"
    assert re.match(
        r"\[performance\] 0\.\d s, .* left · 40/100 queries · 3.3 samples/s · 1,234 tokens/s · TTFT", lines[1]
    )
    assert len([line for line in lines if "tokens/s" in line]) == 2
    assert "\x1b" not in stream.getvalue()
    assert re.fullmatch(r"performance: 1\.\d s · 40/100 queries", lines[3])
    assert lines[4] == "[score]"
    assert lines[5].startswith("score: 0")
    assert len(lines) == 6


def test_a_test_that_outlasts_what_was_expected_promises_nothing() -> None:
    stream = io.StringIO()
    with Display(True, stream, plain_period_s=0.0) as display:
        display.phase("performance", expected=39, expected_s=0.01)
        time.sleep(0.05)
        display.update(LIVE)
    shown = stream.getvalue().splitlines()[1]
    assert re.match(r"\[performance\] 0\.\d s · 40 queries · ", shown), shown


def test_plain_lines_come_every_ten_seconds_unless_told() -> None:
    stream = io.StringIO()
    with Display(True, stream) as display:
        display.phase("performance")
        for _ in range(100):
            display.update(LIVE)
    assert "tokens/s" not in stream.getvalue()


def test_a_pipe_that_nobody_reads_does_not_end_the_run() -> None:
    code = (
        "import contextlib, sys, os\nfrom mlperf_exp.display import Display\n"
        "with Display(True) as display:\n"
        "    for _ in range(5):\n        display.phase('performance', 10)\n"
        "    if len(sys.argv) > 1:\n"
        "        with contextlib.suppress(OSError):\n            sys.stderr.close()\n"
        "    display.phase('accuracy', 10)\n"
        "print('the run goes on', flush=True)\nos._exit(0)\n"
    )
    for more in ([], ["closed"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-c", code, *more], stdout=subprocess.PIPE, stderr=writer, text=True, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stdout) == (0, "the run goes on\n")


def test_nothing_is_shown_where_progress_is_off(terminal: tuple[int, io.TextIOWrapper]) -> None:
    controller, stream = terminal
    with Display(False, stream) as display:
        display.phase("performance", 10)
        display.update(LIVE)
        display.score(1, 2)
    stream.flush()
    assert read(controller) == ""


def test_a_dumb_terminal_gets_plain_lines(
    terminal: tuple[int, io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, stream = terminal
    monkeypatch.setenv("TERM", "dumb")
    with Display(True, stream) as display:
        display.phase("performance", 10)
    shown = read(controller)
    assert "[performance] 10 queries expected" in shown
    assert "\x1b" not in shown


def test_what_others_print_stays_readable() -> None:
    """A warning printed while the lines are shown lands above them, whole; standard output in a pipe stays there."""
    controller, terminal = pty.openpty()
    code = (
        "import sys, time\nfrom mlperf_exp.display import Display\n"
        "with Display(True) as display:\n"
        "    display.phase('start')\n    print('a warning', file=sys.stderr)\n    print('a result')\n"
    )
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment, check=True
    )
    shown = plain(read(controller))
    os.close(terminal)
    os.close(controller)
    assert done.stdout == "a result\n"
    assert re.search(r"^\s*a warning\s*$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("value", "text"), [(NAN, "–"), (0.0, "0"), (0.123456, "0.123"), (35.52, "35.5"), (99.99, "100"), (1234.4, "1,234")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(4.21, "4.2 s"), (59.4, "59 s"), (65, "1:05 min"), (7389, "2:03:09 h")])
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text
