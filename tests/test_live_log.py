"""``live.jsonl``: a line a look, strict JSON, and no error that reaches the measurement."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from mlperf_exp.live_log import LiveLog
from mlperf_exp.records import Live

LIVE = Live(1.5, 10, 8, 1, 640, 5.5, 400.0, 20.0, 35.0, float("nan"), float("inf"))


def test_lines_are_strict_json_and_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    with LiveLog(path) as log:
        log.append("performance", LIVE, 64)
        log.append("accuracy", replace(LIVE, issued=11))
        lines = [json.loads(line, parse_constant=lambda name: f"not JSON: {name}") for line in path.open()]
    assert abs(lines[0].pop("at") - time.time()) < 60
    assert lines[0] == {
        "phase": "performance",
        "expected": 64,
        "elapsed_s": 1.5,
        "issued": 10,
        "completed": 8,
        "errors": 1,
        "tokens": 640,
        "samples_per_second": 5.5,
        "tokens_per_second": 400.0,
        "ttft_p50_ms": 20.0,
        "ttft_p99_ms": 35.0,
        "tpot_p50_ms": None,
        "tpot_p99_ms": None,
    }
    assert (lines[1]["phase"], lines[1]["issued"], lines[1]["expected"]) == ("accuracy", 11, None)
    assert log.error is None


def test_a_full_disk_is_remembered_and_not_raised() -> None:
    log = LiveLog(Path("/dev/full"))
    log.append("performance", LIVE)
    log.append("performance", LIVE)
    log.close()
    assert log.error == "live.jsonl: No space left on device"


def test_a_missing_folder_is_remembered_and_not_raised(tmp_path: Path) -> None:
    log = LiveLog(tmp_path / "gone" / "live.jsonl")
    log.append("performance", LIVE)
    log.close()
    assert log.error == "live.jsonl: No such file or directory"


def test_only_a_torn_line_is_lost(tmp_path: Path) -> None:
    """A file size limit cuts the second line, as a disk that fills up does; then there is room again."""
    path = tmp_path / "live.jsonl"
    script = f"""
import resource, signal
from pathlib import Path
from mlperf_exp.live_log import LiveLog
from mlperf_exp.records import Live
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = LiveLog(Path({str(path)!r}))
live = Live(*range(11))
log.append("performance", live)
size = Path({str(path)!r}).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, {resource.RLIM_INFINITY}))
log.append("performance", live)
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
log.append("performance", live)
print(log.error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cut short" in done.stdout
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["issued"] == json.loads(lines[2])["issued"] == 1
    assert len(lines[1]) == 20


def test_closed_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    before = len(list(Path("/proc/self/fd").iterdir()))
    log = LiveLog(path)
    log.close()
    log.close()
    log.append("performance", LIVE)
    assert path.read_text() == ""
    assert len(list(Path("/proc/self/fd").iterdir())) == before
