"""A job's files inside its log: how results leave a node that shares no file system with the submitting side.

A pod that has ended can neither be copied from nor asked; its log can be read for as long as it exists, through the
same API and the same rights that show it to people, and needs no volume, no open port and no second container. So a
node prints, after its last line, two archives (``tar.xz``): first what no sweep can do without (``result.json``,
``status.json``, the page), then the rest, as far as ``REST_MIB`` allows: kubelets rotate logs at 10 MiB by default.
Each line stands alone, with a checksum, so that a lost or torn one is noticed and the other archive still counts.

    @mlperf_exp:files <uid> <part> <i>/<n> <crc32> <base64>
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra_plugins.mlperf_launchers._files import RETURN, STATUS

REST_MIB = 6.0
ESSENTIAL = ("result.json", STATUS, RETURN, "report.md", "report.html", "config.yaml", "tracking.json",
             "live.jsonl", "run.log")  # fmt: skip
_MARK = b"@mlperf_exp:files "
_CHUNK = 9_000  # bytes before base64: a line stays below the 16 KiB at which container runtimes break lines
_LINE = re.compile(rb"@mlperf_exp:files (\S+) (\S+) (\d+)/(\d+) ([0-9a-f]{8}) (\S+)\s*")


def pack(folder: Path, uid: str) -> Iterator[bytes]:
    """The lines that hand ``folder`` back, each with its line feed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    first = [path for path in files if str(path.relative_to(folder)) in ESSENTIAL]
    yield from _lines(uid, "first", _archive(folder, first))
    rest = [path for path in files if path not in first and path.name != "run.lock"]
    data = _archive(folder, rest)
    while len(data) > REST_MIB * 2**20 and rest:  # the largest go first
        rest.remove(max(rest, key=lambda path: path.stat().st_size))
        data = _archive(folder, rest)
    left = [str(path.relative_to(folder)) for path in files if path not in first + rest and path.name != "run.lock"]
    if left:
        yield f"mlperf_exp: too large to be handed back by the log: {', '.join(left)}\n".encode()
    yield from _lines(uid, "rest", data)


def _archive(folder: Path, files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=2) as archive:
        for path in files:
            with contextlib.suppress(OSError):
                archive.add(path, str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def _lines(uid: str, part: str, data: bytes) -> Iterator[bytes]:
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    for i, chunk in enumerate(chunks, 1):
        head = f"{uid} {part} {i}/{len(chunks)} {zlib.crc32(chunk):08x} ".encode()
        yield _MARK + head + base64.b64encode(chunk) + b"\n"


class Receiver:
    """Puts the files of one attempt together from its log's lines, whatever stands between them.

    Args:
        uid: the attempt's.
        folder: where the files go.
        on_complete: called, in the thread that passes on the log, once all are there.
    """

    def __init__(self, uid: str, folder: Path, on_complete: Callable[[], None] = lambda: None) -> None:
        self._uid, self._folder, self._on_complete = uid.encode(), folder, on_complete
        self._parts: dict[str, dict[int, bytes]] = {}
        self._sizes: dict[str, int] = {}
        self.unpacked: set[str] = set()

    def take(self, line: bytes) -> bool:
        """Whether the line is one of ours, and not to be shown."""
        if not line.startswith(_MARK):
            return False
        match = _LINE.fullmatch(line)
        if match is None or match[1] != self._uid:
            return True
        with contextlib.suppress(ValueError):
            chunk = base64.b64decode(match[6], validate=True)
            if zlib.crc32(chunk) == int(match[5], 16):
                part = match[2].decode()
                self._sizes[part] = int(match[4])
                self._parts.setdefault(part, {})[int(match[3])] = chunk
                if len(self._parts[part]) == self._sizes[part] and part not in self.unpacked:
                    self._unpack(part)
        return True

    @property
    def complete(self) -> bool:
        """Whether all has come: the node prints nothing behind it."""
        return {"first", "rest"} <= self.unpacked

    def problem(self) -> str | None:
        """What is missing, in one line; None where all came, or nothing was begun."""
        torn = {part: size - len(self._parts[part]) for part, size in self._sizes.items() if part not in self.unpacked}
        told = ", ".join(f"{missing} of {self._sizes[part]} pieces of '{part}'" for part, missing in torn.items())
        return f"the log does not hold all files of the job: {told} are missing" if told else None

    def _unpack(self, part: str) -> None:
        pieces = self._parts[part]
        data = b"".join(pieces[i] for i in sorted(pieces))
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as archive:
            archive.extractall(self._folder, filter="data")
        self.unpacked.add(part)
        if self.complete:
            self._on_complete()
