"""Who the replicas are: where each runs, what it printed, and why it was lost."""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

from mlperf_exp.errors import RunFailed
from mlperf_exp.files import write_json
from mlperf_exp.sut.routing.router import Router

_TAIL_LINES = 5


class Roster:
    """Of ``count`` replicas, with their logs in ``folder``.

    ``nodes`` are empty until it is known where they run; ``losses`` are sentences without their stop;
    ``warnings`` are the engines', each once.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._tails: list[deque[str]] = [deque(maxlen=_TAIL_LINES) for _ in range(count)]
        self.nodes: list[str] = []
        self.losses: list[str] = []
        self.warnings: list[str] = []

    def open(self) -> None:
        """Make the folder."""
        self._folder.mkdir(exist_ok=True)

    def named(self, replica: int) -> str:
        """What a message calls it."""
        node = self.nodes[replica] if self.nodes else "a node not yet known"
        return f"replica {replica} on {node}"

    def keep_log(self, replica: int, text: bytes) -> None:
        """Write down what it printed."""
        with contextlib.suppress(OSError), self._log(replica).open("ab") as file:
            file.write(text)
        lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
        self._tails[replica].extend(line[-300:] for line in lines if line)

    def not_started(self, replica: int, why: str) -> RunFailed:
        """The error that names it, its node and the last lines of its log."""
        ending = " | ".join(self._tails[replica])
        said = f"; its log ends: {ending}" if ending else ""
        return RunFailed(f"{self.named(replica)} did not start: {why}{said} (see {self._log(replica)})")

    def lost(self, replica: int, why: str) -> str:
        """Note a loss; returns the sentence."""
        reason = f"{self.named(replica)} was lost: {why}"
        self.losses.append(reason)
        return reason

    def none_left(self) -> str:
        """What is said when all are lost."""
        more = f" (and {len(self.losses) - 2} more)" if len(self.losses) > 2 else ""
        return f"no replica is left: {'; '.join(self.losses[:2])}{more}"

    def write(self, router: Router) -> None:
        """Keep ``replicas.json``: a row a replica, with what it did in the test that the router tells of."""
        tally = router.tally()
        rows = [
            {"replica": replica, "node": self.nodes[replica], "lost": router.is_out(replica)}
            | ({"queries": tally.queries[replica], "tokens": tally.work[replica]} if tally else {})
            for replica in range(self._count)
        ]
        write_json(self._folder / "replicas.json", {"replicas": rows, "losses": self.losses})

    def _log(self, replica: int) -> Path:
        return self._folder / f"{replica}.log"
