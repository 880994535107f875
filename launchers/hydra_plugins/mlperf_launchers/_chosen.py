"""Refuses a launcher that is chosen inside a swept configuration: Hydra would ignore it without a word."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig

from mlperf_exp.errors import UserError


def refuse_launchers(config: DictConfig, context: HydraContext, job_overrides: Sequence[Sequence[str]]) -> None:
    """Look at one job of each combination of groups: values choose no launcher.

    Raises:
        UserError: with the command that does it.
    """
    parser = OverridesParser.create(config_loader=context.config_loader)
    chosen = config.hydra.runtime.choices["hydra/launcher"]
    groups: dict[str, bool] = {}
    seen: set[tuple[str, ...]] = set()
    for texts in job_overrides:
        own = []
        for override in parser.parse_overrides(overrides=list(texts)):
            key = override.key_or_group
            if key not in groups:
                groups[key] = bool(context.config_loader.get_group_options(key))
            if groups[key]:
                own.append(str(override.input_line))
        if not own or tuple(own) in seen:
            continue
        seen.add(tuple(own))
        wanted = context.config_loader.load_sweep_config(config, list(texts)).hydra.runtime.choices["hydra/launcher"]
        if wanted != chosen:
            culprit = " ".join(own)
            raise UserError(
                "hydra/launcher",
                f"{culprit} chooses {wanted}, and the sweep runs on {chosen}: a sweep has one launcher",
                f"Run it by a command of its own: python -m mlperf_exp -m hydra/launcher={wanted} {culprit}",
            )
