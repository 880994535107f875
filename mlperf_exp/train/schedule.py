"""The learning rate of a step: linear warm-up, then polynomial decay (LARS, SGD) or cosine decay (AdamW)."""

from __future__ import annotations

import math

from mlperf_exp.train.job import Optimization


def rate(optimization: Optimization, step: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0.

    As in the MLPerf reference (``image_classification``, PolynomialWarmup): the rate climbs linearly to ``base_lr``
    over the warm-up, then falls to ``end_lr`` as a polynomial over ``decay_steps`` and stays there.
    """
    o = optimization
    if step < o.warmup_steps:
        return o.base_lr * (step + 1) / o.warmup_steps
    done = min(1.0, (step - o.warmup_steps) / max(1, o.decay_steps))
    if o.name == "adamw":
        return o.end_lr + (o.base_lr - o.end_lr) * (1 + math.cos(math.pi * done)) / 2
    return o.end_lr + (o.base_lr - o.end_lr) * float((1 - done) ** o.power)
