"""Attention for vLLM on a Hopper card: a step's decodes and its prefills by a kernel each.

``backend.engine.attention_config.backend=CUSTOM`` chooses it, as ``conf/tuning/`` does for H100 and H200. vLLM loads
:func:`register` in each of its processes, as the entry point ``mlperf_exp`` of the group ``vllm.general_plugins``.
Figures: docs/tuning.md.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

GROUP, NAME = "vllm.general_plugins", "mlperf_exp"
SERIES = ("0.32.",)  # of vLLM, whose classes it extends and with which it was measured


def register() -> None:
    """Make :class:`mlperf_exp.sut.attention.split.SplitBackend` vLLM's ``CUSTOM``; imported only where it is chosen."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if not AttentionBackendEnum.CUSTOM.is_overridden():
        register_backend(AttentionBackendEnum.CUSTOM, f"{__name__}.split.SplitBackend")


def settle(engine: dict[str, Any], version: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The engine's arguments for this vLLM, and what to warn of: without it vLLM's own choice is slower, and right.

    Args:
        engine: as planned.
        version: of vLLM.
    """
    attention = engine.get("attention_config")
    if not isinstance(attention, dict) or attention.get("backend") != "CUSTOM":
        return engine, ()
    chosen = os.environ.get("VLLM_PLUGINS")
    if not entry_points(group=GROUP, name=NAME):
        why = "mlperf_exp is on the path but not installed (pip install -e .)"
    elif chosen is not None and NAME not in chosen.split(","):
        why = f"VLLM_PLUGINS does not name {NAME}"
    elif not version.startswith(SERIES):
        why = f"it was tried with vLLM {', '.join(f'{series}x' for series in SERIES)} only, and this is {version}"
    else:
        return engine, ()
    rest = {key: value for key, value in attention.items() if key != "backend"}
    return engine | {"attention_config": rest}, (
        f"backend.engine.attention_config.backend=CUSTOM was left out: {why}. vLLM's own attention answers slower.",
    )
