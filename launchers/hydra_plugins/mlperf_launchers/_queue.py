"""The jobs of a batch that wait, in the order in which those that can share an engine follow one another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from hydra.errors import HydraException
from hydra.types import HydraContext
from hydra_plugins.mlperf_launchers import _job
from hydra_plugins.mlperf_launchers._job import Job
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mlperf_exp.sweep.identity import Identity, identify


class Queue:
    """All jobs of a batch, composed before any is started; numbers are places in the batch, from 0.

    Args:
        config: of the sweep.
        context: Hydra's.
        overrides: of each job.
        first: the first job's number in the sweep.
        env: more variables of the jobs.
        share: whether jobs may share an engine.
    """

    def __init__(
        self,
        config: DictConfig,
        context: HydraContext,
        overrides: Sequence[Sequence[str]],
        first: int,
        env: Mapping[str, str],
        share: bool,
    ) -> None:
        self.jobs: list[Job | None] = []
        self.refused: dict[int, Exception] = {}  # those that cannot be composed
        self.identities: list[Identity] = []
        self._share = share
        for i, texts in enumerate(overrides):
            job: Job | None = None
            identity = Identity()
            try:
                job = _job.prepare(config, context, list(texts), first + i, dict(env))
                identity = identify(job.config)
            except (HydraException, OmegaConfBaseException) as error:
                self.refused[i] = error
            self.jobs.append(replace(job, group=identity.group) if job is not None else None)
            self.identities.append(identity)
        groups = [job.group if job is not None else None for job in self.jobs]
        place = {group: i for i, group in reversed(list(enumerate(groups))) if group is not None}
        self.waiting = sorted(range(len(groups)), key=lambda i: (place.get(groups[i] or "", i), i))

    def group(self, i: int) -> str | None:
        """Which jobs can share an engine with this one; None: none."""
        job = self.jobs[i]
        return job.group if job is not None and self._share else None

    def fitting(self, group: str | None) -> int | None:
        """The next job for a process that runs this group."""
        return next((i for i in self.waiting if self.group(i) == group), None)

    def next(self, busy: Collection[str | None]) -> int:
        """The next job for a fresh process: of a group that no other one runs, else the first."""
        for i in self.waiting:
            own = self.group(i)
            if own is None or own not in busy:
                return i
        return self.waiting[0]
