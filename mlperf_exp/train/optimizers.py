"""An optimizer over a module's parameters, with MLPerf's rule for weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mlperf_exp.train.job import Optimization

ADAMW_BETAS, ADAMW_EPSILON = (0.9, 0.95), 1e-5  # MLPerf's, for language models


def build(module: nn.Module, optimization: Optimization, device: str) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW. Biases and normalization parameters are neither decayed nor, under LARS, rescaled."""
    o = optimization
    decayed, spared = split(module)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": o.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if o.name == "lars":
        from timm.optim import Lars

        # timm leaves groups without decay unscaled (always_adapt=False), as MLPerf's LARS wants it
        made: torch.optim.Optimizer = Lars(groups, lr=o.base_lr, momentum=o.momentum, trust_coeff=o.eta, eps=o.epsilon)
        return made
    if o.name == "adamw":
        on_gpu = device == "cuda"
        return torch.optim.AdamW(groups, lr=o.base_lr, betas=ADAMW_BETAS, eps=ADAMW_EPSILON, fused=on_gpu)
    return torch.optim.SGD(groups, lr=o.base_lr, momentum=o.momentum, fused=device == "cuda")


def split(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters with weight decay (matrices and kernels) and those without (biases and normalization)."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else spared).append(parameter)
    return decayed, spared
