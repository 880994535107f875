"""Which jobs of a sweep are the same, and which can share one engine start; from the configuration alone."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mlperf_exp import hashes
from mlperf_exp.config import Config
from mlperf_exp.errors import ExperimentError
from mlperf_exp.plan import make_plan


@dataclass(frozen=True, slots=True)
class Identity:
    """A job's two names: ``plan_hash`` as in its result, and ``group``, equal for jobs that can share an engine.

    Both are None for a job whose plan is refused, and for one of another program.
    """

    plan_hash: str | None = None
    group: str | None = None


def identify(config: DictConfig) -> Identity:
    """The identity of a composed job, ``hydra`` included."""
    if OmegaConf.get_type(config) is not Config:
        return Identity()
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        hydra: Any = task.pop("hydra")
    try:
        plan = make_plan(task, Path())
    except ExperimentError:  # the job says so itself
        return Identity()
    environment = OmegaConf.to_container(hydra.job.env_set, resolve=False)
    group = json.dumps([hashes.planned_engine_hash(plan), environment], sort_keys=True)
    return Identity(hashes.plan_hash(plan), hashlib.sha256(group.encode()).hexdigest()[:16])


def varying(jobs: Sequence[Sequence[str]], keys: Collection[str] | None = None) -> list[dict[str, str]]:
    """For each job's overrides, those that not all jobs have, as ``{"scenario.target_qps": "20"}``.

    ``keys``: those that the sweep varies, where its jobs are not all known yet.
    """
    if keys is not None:
        return [{key: value for key, value in _pairs(texts).items() if key in keys} for texts in jobs]
    shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    return [_pairs([text for text in texts if text not in shared]) for texts in jobs]


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        try:
            parsed = OverridesParser.create().parse_override(text)
            key, value = parsed.get_key_element(), str(parsed.get_value_element_as_str())
        except HydraException:
            key, _, value = text.partition("=")
        pairs[key.lstrip("+~")] = value
    return pairs
