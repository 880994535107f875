"""Plan, weights and samples -> the program that the ``torch`` backend runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlperf_exp.config import Compile, Device, ExtractiveQa, ImageClassifier
from mlperf_exp.environment import fast_type
from mlperf_exp.errors import UserError
from mlperf_exp.messages import Plan
from mlperf_exp.sut.forward.program import Program

_SHOWN = 160  # characters of what PyTorch says about weights: it names every tensor


def program(plan: Plan, weights: Path | None, samples: Any) -> Program:
    """The network of the plan's model, not yet on a device. ``weights`` None: random ones.

    Raises:
        UserError: the weights cannot be read, or are of another architecture.
    """
    model, kernels = plan.config.model, Compile[plan.engine["compile"]]
    dtype = computed_in(model.dtype, plan.config.hw.device)
    if isinstance(model, ImageClassifier):
        from mlperf_exp import networks
        from mlperf_exp.sut.forward.images import ImageProgram

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.config.seed)
            network = networks.build(model.network, model.classes)
        if weights is not None:
            load_into(network, weights, model)
        else:
            calm(network)
        return ImageProgram(model, network, samples.pixels, dtype, kernels)
    assert isinstance(model, ExtractiveQa)
    from mlperf_exp.sut.forward.bert import PackedBert
    from mlperf_exp.sut.forward.questions import QuestionProgram

    state = None if weights is None else state_dict(weights)
    fused = kernels is not Compile.none
    return QuestionProgram(
        samples.tokens, lambda device: PackedBert(model, state, getattr(torch, dtype), device, fused)
    )


def calm(network: Any) -> None:
    """Keep random weights from overflowing half precision: each residual branch adds a little only."""
    for module in network.modules():
        last = getattr(module, "bn3", None) or (getattr(module, "bn2", None) if hasattr(module, "conv2") else None)
        if last is not None:
            torch.nn.init.constant_(last.weight, 0.2)


def computed_in(dtype: str, device: Device) -> str:
    """Torch's name of the type; ``auto`` is float16 on a GPU, and what a processor is fast in."""
    if dtype != "auto":
        return dtype
    return "float16" if device is Device.cuda else fast_type()


def state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or a PyTorch file (read without running code), or of a folder with one.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    files = [path] if path.is_file() else [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin"))]
    if not files:
        raise UserError("model.path", f"{path} has no weights", "Give a .safetensors or .pth file, or its folder")
    found: dict[str, Any] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                found |= load_file(str(file))
            else:
                found |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each format has its own kinds
            why = " ".join(str(error).split())[:200]
            raise UserError("model.path", f"{file} cannot be read: {why}", "Fetch the weights again") from None
    return found


def load_into(network: Any, weights: Path, model: ImageClassifier) -> None:
    """Put the weights into the network.

    Raises:
        UserError: they are of another architecture, or of another number of classes.
    """
    state = state_dict(weights)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        first = next((line for line in str(error).splitlines()[1:] if line.strip()), str(error))
        first = first.strip() if len(first) < _SHOWN else f"{first.strip()[:_SHOWN]} ..."
        raise UserError(
            "model.path",
            f"the weights of {weights} are not those of {model.network} with {model.classes} classes: {first}",
            "Give the weights that belong to it, or another model=",
        ) from None
