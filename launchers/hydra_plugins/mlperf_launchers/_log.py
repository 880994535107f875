"""What an attempt prints: kept whole in its folder, shown with a prefix, and its last lines remembered."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO

from hydra_plugins.mlperf_launchers._handback import Receiver
from hydra_plugins.mlperf_launchers._process import say

TAIL = 40
_LONGEST = 1 << 16  # a line without an end is shown in pieces


class JobLog:
    """The log of one attempt, of any number of nodes; a :class:`_cluster.Log`.

    Args:
        name: of the attempt, for the prefix.
        folder: where ``node.NAME.log`` is kept; None: the nodes themselves keep it.
        shown: whether lines go to standard output.
        receiver: takes the lines that hand files back.
    """

    def __init__(self, name: str, folder: Path | None, shown: bool, receiver: Receiver) -> None:
        self._name, self._folder, self._shown, self._receiver = name, folder, shown, receiver
        self._files: dict[str, IO[bytes] | None] = {}
        self._rests: dict[str, bytes] = {}
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._lock = threading.Lock()

    def write(self, node: str, data: bytes) -> None:
        """Take what a node printed."""
        with self._lock:
            *lines, rest = (self._rests.get(node, b"") + data).split(b"\n")
            if len(rest) > _LONGEST:
                lines, rest = [*lines, rest], b""
            self._rests[node] = rest
            self._take(node, [line + b"\n" for line in lines])

    def close(self) -> None:
        """There is no more to come."""
        with self._lock:
            for node, rest in self._rests.items():
                self._take(node, [rest] if rest else [])
            self._rests.clear()
            for file in self._files.values():
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()

    @property
    def complete(self) -> bool:
        """Whether the log has handed back all files, after which nothing follows."""
        return self._receiver.complete

    def problem(self) -> str | None:
        """What is missing of the files that the log hands back."""
        return self._receiver.problem()

    def tail(self) -> list[str]:
        """The last lines."""
        with self._lock:
            return list(self._tail)

    def _take(self, node: str, lines: list[bytes]) -> None:
        lines = [line for line in lines if not self._receiver.take(line)]
        if not lines:
            return
        self._keep(node, b"".join(lines))
        # Of a line that was overwritten in place, a terminal would show the last state.
        texts = [line.rstrip(b"\r\n").rpartition(b"\r")[2].decode(errors="replace") for line in lines]
        self._tail.extend(texts)
        if self._shown:
            say("".join(f"[job {self._name}/{node}] {text}\n" for text in texts), sys.stdout)

    def _keep(self, node: str, data: bytes) -> None:
        if self._folder is None:
            return
        with contextlib.suppress(OSError):  # a full disk
            if node not in self._files:
                self._files[node] = None
                safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in node)
                self._files[node] = (self._folder / f"node.{safe}.log").open("ab", buffering=0)
            file = self._files[node]
            if file is not None:
                file.write(data)
