"""A file is whole or not there, and JSON is read by strict readers."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlperf_exp.files import write_atomic, write_json


def test_content_arrives_and_nothing_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "gr\u00fcn")
    assert path.read_bytes() == "gr\u00fcn".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_names_the_file_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "before")
    # a limit on the size of files, in a process of its own: the write fails as on a full disk
    code = (
        "import resource, signal, sys; from pathlib import Path; from mlperf_exp.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: write_atomic(Path(sys.argv[1]), 'x' * 100)\n"
        "except OSError as error: print(error.errno, error.filename)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(errno.EFBIG), str(path)]
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "none" / "a.txt", "x")
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")


def test_a_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "a.txt", threading.Event()
    write_atomic(path, "0" * 100_000)

    def write() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 10
            write_atomic(path, str(number) * 100_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            text = path.read_text()
            assert len(text) == 100_000 and len(set(text)) == 1
    finally:
        stop.set()
        writer.join()


def test_json_for_strict_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"nan": float("nan"), "list": [float("inf"), 1.5, ("\u00e9", None)], 3: {"path": Path("a/b")}}
    write_json(path, value)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {"nan": None, "list": [None, 1.5, ["\u00e9", None]], "3": {"path": "a/b"}}
    assert "\u00e9" in path.read_text() and path.read_text().endswith("}\n")
