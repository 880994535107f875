"""What is awaited of Ray and of the replicas at a start or a reset: their places first, then a word from each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mlperf_exp.errors import ExperimentError, RunFailed, UserError
from mlperf_exp.sut.replicas.roster import Roster


class Muster:
    """Of ``count`` replicas; made and used on the loop's thread.

    ``ray_log`` is named in messages; ``phases`` are the seconds of each replica's start, ``missing`` those from which
    no word came yet, ``lost`` why nobody speaks to Ray any more.
    """

    def __init__(self, count: int, roster: Roster, ray_log: Path) -> None:
        self._count, self._roster, self._ray_log = count, roster, ray_log
        loop = asyncio.get_running_loop()
        self._placed: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._all: asyncio.Future[None] = loop.create_future()
        self.missing = set(range(count))
        self.phases: dict[int, dict[str, float]] = {}
        self.lost: ExperimentError | None = None

    async def placed(self) -> dict[str, Any]:
        """Wait until the replicas have their places; the event that says which.

        Raises:
            UserError, RunFailed: there is no room, or Ray was lost.
        """
        return await self._placed

    async def all(self) -> None:
        """Wait for all replicas.

        Raises:
            UserError, RunFailed: one did not start, or Ray was lost.
        """
        await self._all

    def again(self) -> None:
        """All are awaited once more.

        Raises:
            RunFailed, UserError: nobody speaks to Ray any more, so no word will come.
        """
        if self.lost is not None:
            raise self.lost
        self._all = asyncio.get_running_loop().create_future()
        self.missing = set(range(self._count))

    @property
    def waits(self) -> bool:
        """Whether a replica is awaited."""
        return not self._all.done()

    def not_started(self, replica: int, why: str) -> None:
        """It will not come."""
        self._fail(self._roster.not_started(replica, why))

    def take(self, event: dict[str, Any]) -> None:
        """A word of the process that speaks to Ray."""
        kind, replica = event["event"], event.get("replica", -1)
        if kind == "placed" and not self._placed.done():
            self._placed.set_result(event)
        elif kind in ("started", "renewed"):
            self.phases[replica] = event.get("phases") or {}
            self.missing.discard(replica)
            if not self.missing and not self._all.done():
                self._all.set_result(None)
        elif kind == "failed" and "user" in event:
            self._fail(UserError(*event["user"]))
        elif kind in ("failed", "died"):
            self.not_started(replica, event["error"])
        elif kind in ("refused", "lost", "ended") and self.lost is None:
            words = event.get("error") or f"the process that speaks to Ray ended with status {event.get('status')}"
            self.lost = RunFailed(f"{words} (see {self._ray_log})")
            if "user" in event:
                self.lost = UserError(*event["user"])
            if not self._placed.done():
                self._placed.set_exception(self.lost)
            self._fail(self.lost)

    def _fail(self, error: ExperimentError) -> None:
        if not self._all.done():
            self._all.set_exception(error)
            self._all.exception()  # seen: nobody may wait for it, where their places were never known
