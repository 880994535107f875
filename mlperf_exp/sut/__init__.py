"""Systems under test: one file a backend, and the table of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlperf_exp.config import OpenaiBackend, Replicated, SimulatedBackend, TorchBackend, VllmBackend
from mlperf_exp.kinds.decoder import tokenizer
from mlperf_exp.messages import Plan
from mlperf_exp.sut.base import SystemUnderTest


def create(plan: Plan, model: Path | None) -> SystemUnderTest:
    """The plan's system, not yet started. ``model`` is the checkpoint's folder, where the backend reads one."""
    backend = plan.config.backend
    if isinstance(backend, Replicated) and (backend.replicas or 1) > 1:
        from mlperf_exp.sut.replicas.fleet import Fleet

        return Fleet(plan, model)
    if isinstance(backend, VllmBackend):
        from mlperf_exp.sut.vllm import Vllm

        assert model is not None
        return Vllm(plan, model)
    if isinstance(backend, OpenaiBackend):
        from mlperf_exp.sut.openai import OpenAI
        from mlperf_exp.sut.routing import rules

        asked = plan.config.model
        return OpenAI(
            backend,
            model=asked.path,
            max_tokens=asked.max_new_tokens,
            min_tokens=asked.min_new_tokens,
            tokenize=tokenizer(model, special=False) if model is not None else None,
            retry=rules.retry(plan.config.scenario.name),
            longest_first=partial(rules.longest_first, plan),
        )
    if isinstance(backend, TorchBackend):
        from mlperf_exp.sut.torch import Torch

        return Torch(plan, model)
    if isinstance(backend, SimulatedBackend):
        from mlperf_exp.sut.simulated import Simulated

        return Simulated(backend, plan.config.seed)
    raise AssertionError(f"no system for {type(backend).__name__}")
