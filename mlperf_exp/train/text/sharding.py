"""FSDP2 over all ranks: parameters, gradients and the optimizer's state in shards, made where they stay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mlperf_exp.train.text.network import Llama

_STD = 0.01  # NeMo's Llama 3: all matrices; those that write to the residual stream are divided by sqrt(2 layers)
_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def shard(network: Llama, mesh: Any, bf16: bool) -> None:
    """Shard a network on the meta device over ``mesh``: each layer for itself, the rest together.

    Weights, gradients' sums and the optimizer's state stay in float32; with ``bf16`` layers compute in it.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in network.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def initialize(network: Llama, seed: int) -> None:
    """Random weights, the same ones for any number of ranks: each draws a whole matrix and keeps its part."""
    with torch.no_grad():
        for place, (name, parameter) in enumerate(network.named_parameters()):
            assert isinstance(parameter, DTensor)
            local = parameter.to_local()
            if parameter.ndim == 1:
                local.fill_(1.0)
                continue
            std = _STD / math.sqrt(2 * network.task.layers) if name.endswith(_RESIDUAL) else _STD
            generator = torch.Generator(local.device).manual_seed((seed << 20) + place)
            whole = torch.empty(parameter.shape, dtype=local.dtype, device=local.device)
            whole.normal_(0.0, std, generator=generator)
            part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            local.copy_(part.to_local())
