"""Memory and CPU time of a process and all its descendants."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psutil

_LOOK_FOR_CHILDREN = 4  # samples between two searches of the process table, which cost the most


class Tree:
    """A process and its descendants, but for those in ``without`` and theirs."""

    def __init__(self, pid: int, without: Collection[int] = ()) -> None:
        self._root = psutil.Process(pid)
        self._without = set(without)
        self._members: dict[int, psutil.Process] = {pid: self._root}
        self._cpu_s: dict[int, float] = {}  # the last known of every member, of those that ended too
        self._looks = 0

    @property
    def pids(self) -> set[int]:
        """The members that were there at the last look."""
        return set(self._members)

    def sample(self) -> dict[str, Any]:
        """Resident memory (MiB; shared pages count in each process), CPU seconds so far, number of processes."""
        if self._looks % _LOOK_FOR_CHILDREN == 0:
            self._find()
        self._looks += 1
        resident = 0
        for pid, process in list(self._members.items()):
            try:
                with process.oneshot():
                    resident += process.memory_info().rss
                    times = process.cpu_times()
            except psutil.Error:
                del self._members[pid]
                continue
            self._cpu_s[pid] = times.user + times.system
        return {
            "rss_mib": round(resident / 2**20, 1),
            "cpu_s": round(sum(self._cpu_s.values()), 2),
            "processes": len(self._members),
        }

    def _find(self) -> None:
        try:
            found = self._root.children(recursive=True)
        except psutil.Error:
            return
        left_out = set(self._without)
        for child in found:  # parents come before their children
            try:
                if child.ppid() in left_out:
                    left_out.add(child.pid)
            except psutil.Error:
                continue
            if child.pid not in left_out:
                self._members.setdefault(child.pid, child)
