"""Composes the jobs of a sweep: as Hydra's loader does it, in a fraction of the time.

Hydra composes each job twice from all its files, once to see that it is legal and once to run it: 0.1 s a job, and ten
before the first of a hundred begins. Jobs of one sweep mostly differ in the values of the same keys; such a job is a
copy of the first with its own values put in. Everything else (groups, deletions, keys of Hydra, values that would be
merged) goes the whole way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_PLAIN = (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD)


def install(context: HydraContext) -> None:
    """Let the loader compose jobs by a :class:`Composer`, for the sweeper as for the launcher."""
    loader: Any = context.config_loader
    if not isinstance(loader.load_sweep_config, Composer):
        loader.load_sweep_config = Composer(loader)


@dataclass(slots=True)
class _Base:
    """A job that was composed the whole way, as it came from the loader."""

    master: DictConfig
    lines: list[str | None]
    config: DictConfig


class Composer:
    """Stands for ``ConfigLoader.load_sweep_config``."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._bases: dict[tuple[object, ...], _Base] = {}
        self._legal: dict[tuple[str, ...], DictConfig] = {}  # composed for the sweeper, and wanted again

    def __getstate__(self) -> dict[str, Any]:  # a job's process gets the loader, and not all other jobs
        return {"_loader": self._loader, "_parsed": {}, "_groups": {}, "_bases": {}, "_legal": {}}

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The job's configuration, which belongs to the caller.

        Raises:
            HydraException: it does not compose.
        """
        texts = tuple(sweep_overrides)
        known = self._legal.pop(texts, None)
        if known is not None and OmegaConf.is_missing(known.hydra.job, "num"):  # nobody has made it their own
            return known
        config = self._composed(master_config, texts)
        self._legal[texts] = config
        return config

    def _composed(self, master: DictConfig, texts: Sequence[str]) -> DictConfig:
        overrides = self._parse(texts)
        shape = self._shape(overrides)
        base = self._bases.get(shape) if shape is not None else None
        if base is not None and base.master is master:
            try:
                return _copied(base, overrides)
            except (OmegaConfBaseException, HydraException):
                pass  # the whole way ends in words of Hydra's own
        config = type(self._loader).load_sweep_config(self._loader, master, list(texts))
        if shape is not None:
            self._bases[shape] = _Base(master, [one.input_line for one in overrides], copy.deepcopy(config))
        return config

    def _parse(self, texts: Sequence[str]) -> list[Override]:
        for text in texts:
            if text not in self._parsed:
                [self._parsed[text]] = OverridesParser.create().parse_overrides(overrides=[text])
        return [self._parsed[text] for text in texts]

    def _shape(self, overrides: Sequence[Override]) -> tuple[object, ...] | None:
        """What jobs have in common that differ in values; None: nothing that would be of use."""
        shape: list[object] = []
        keys: list[str] = []
        for one in overrides:
            key = one.key_or_group
            if key not in self._groups:
                self._groups[key] = bool(self._loader.get_group_options(key))
            if one.is_hydra_override() or one.is_sweep_override():
                return None
            if self._groups[key] or one.type not in _PLAIN:
                shape.append(one.input_line)
                continue
            value = one.value()
            if one.package is not None or isinstance(value, dict) or any(_touch(key, other) for other in keys):
                return None
            keys.append(key)
            shape.append((one.type, key))
        return tuple(shape)


def _touch(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _copied(base: _Base, overrides: Sequence[Override]) -> DictConfig:
    config = copy.deepcopy(base.config)
    for line, one in zip(base.lines, overrides, strict=True):
        if line != one.input_line:
            OmegaConf.update(config, one.key_or_group, one.value(), force_add=one.type is not OverrideType.CHANGE)
    job = config.hydra.job
    config.hydra.overrides.task = [one.input_line for one in overrides]
    names = job.config.override_dirname
    job.override_dirname = get_overrides_dirname(
        overrides=list(overrides), kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
    )
    return config
