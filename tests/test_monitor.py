"""The monitor on real run folders and on what is left of broken ones, on a terminal and without."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlperf_exp.monitor import RunLook, SweepLook, draw, look, main

LINE = {"phase": "performance", "expected": 1000, "elapsed_s": 10.0, "issued": 260, "completed": 250, "errors": 0,
        "tokens": 5000, "samples_per_second": 25.0, "tokens_per_second": 3200.0, "ttft_p50_ms": 20.0,
        "ttft_p99_ms": 35.0, "tpot_p50_ms": 5.0, "tpot_p99_ms": 9.0}  # fmt: skip
SAMPLE = {"at": 0, "ns": 1, "rss_mib": 2048.0, "gpus": [{"w": 650.4, "memory_mib": 71680.0, "busy_percent": 97}]}


def shown(folder: Path) -> str:
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(draw(look(folder)))
    return console.export_text()


def run_folder(folder: Path, *lines: dict[str, Any], torn: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: x\n")
    if lines:
        (folder / "live.jsonl").write_text(
            "".join(json.dumps({"at": time.time(), **line}) + "\n" for line in lines) + torn
        )
    return folder


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    later = LINE | {"elapsed_s": 11.0, "completed": 275, "ttft_p50_ms": None, "ttft_p99_ms": None}
    folder = run_folder(tmp_path / "run", LINE, later, torn='{"at": 17, "phase": "perf')
    (folder / "telemetry.jsonl").write_text(json.dumps({"interval_s": 0.5}) + "\n" + json.dumps(SAMPLE) + "\n")
    it = look(folder)
    assert isinstance(it, RunLook)
    assert (it.state, it.ended, it.phase, it.done, it.expected) == ("running", False, "performance", 275, 1000)
    assert it.left_s() == pytest.approx(29.0)
    text = shown(folder)
    for words in ("275/1,000 queries", "3,200 tokens/s", "TTFT p50 20 p99 35 ms", "TPOT p50 5 p99 9 ms", "29 s left",
                  "650 W", "GPU 97 %", "GPU memory 70.0 GiB", "memory 2.0 GiB"):  # fmt: skip
        assert words in text, words


def test_half_written_and_silent_folders(tmp_path: Path) -> None:
    assert look(run_folder(tmp_path / "a")).state == "starting" or "no sign" in look(tmp_path / "a").state
    folder = run_folder(tmp_path / "b", LINE)
    (folder / "result.json").write_text('{"schema": 1, "run": {"sta')
    (folder / "live.jsonl").write_bytes(
        b"\xff\xfe garbage\n[1]\nnull\n" + json.dumps({"phase": 5, "completed": "x"}).encode() + b"\n"
    )
    assert isinstance(look(folder), RunLook)
    assert shown(folder)
    silent = look(run_folder(tmp_path / "c", LINE), now=time.time() + 300)
    assert silent.state.startswith("no sign of life for 5:0")
    assert not silent.ended


def test_a_run_that_ended(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", LINE)
    result = {"run": {"name": "[red]it[/red]", "status": "finished"}, "verdict": {"valid": True},
              "metrics": {"tokens_per_second": 7552.0, "completed": 2600, "joules_per_token": 0.09},
              "phases": {"total_s": 120.0}}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    it = look(folder)
    assert (it.state, it.ended) == ("VALID", True)
    text = shown(folder)
    assert "[red]it[/red]" in text, "no markup of rich's is read in it"
    assert "7,552 tokens/s · 0.09 J/token" in text
    assert main([str(folder)]) == 0


def test_a_sweep_with_its_record(tmp_path: Path) -> None:
    run_folder(tmp_path / "1", LINE)

    def job(number: int, status: str, **more: Any) -> dict[str, Any]:
        own = {"scenario.target_qps": str(20 + 10 * number)}
        return {"number": number, "own": own, "status": status, "outcome": None, "seconds": None, "folder": None} | more

    jobs = [
        job(0, "finished", outcome="valid", seconds=61.0, folder="0"),
        job(1, "running", folder="1"),
        job(2, "waiting"),
        job(3, "failed", own=None, outcome="out of memory", seconds=9, folder="3"),
    ]
    (tmp_path / "sweep.json").write_text(
        json.dumps({"schema": 1, "id": "s", "status": "running", "jobs": jobs, "remaining_s": 122.0})
    )
    it = look(tmp_path)
    assert isinstance(it, SweepLook)
    assert it.counts() == "1 valid, 1 running, 1 waiting, 1 out of memory"
    assert not it.ended
    text = shown(tmp_path)
    for words in ("2:02 min left", "scenario.target_qps=30", "250/1,000 queries", "out of memory"):
        assert words in text, words
    (tmp_path / "sweep.json").write_text('{"schema": 1, "jobs": [')
    assert isinstance(look(tmp_path), SweepLook), "by its numbered folders, while the record is torn"


def test_slips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path), "--interval", "0"]) == 2
    assert capsys.readouterr().err.count("mlperf_exp.monitor: ") == 3


def test_without_a_terminal_it_writes_plain_lines_until_the_end(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", LINE)
    process = subprocess.Popen([sys.executable, "-m", "mlperf_exp.monitor", str(folder), "--interval", "0.1"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "250/1,000 queries" in first
    assert "\x1b" not in first
    (folder / "result.json").write_text(json.dumps({"run": {"status": "failed"}}))
    rest, _ = process.communicate(timeout=60)
    assert "failed" in rest.splitlines()[-1]
    assert process.returncode == 0


def test_ctrl_c_leaves_a_terminal_clean(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", LINE)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "mlperf_exp.monitor", str(folder)], stdout=theirs, stderr=theirs,
                               stdin=theirs, env={**os.environ, "TERM": "xterm"})  # fmt: skip
    os.close(theirs)
    said = b""
    end = time.monotonic() + 90
    while b"queries" not in said and time.monotonic() < end:
        said += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            more = os.read(ours, 4096)
        except OSError:
            break
        if not more:
            break
        said += more
    assert process.wait(60) == 0
    os.close(ours)
    assert b"Traceback" not in said
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor is back"
