"""Inference kernels for convolutional networks: batch norm folded away; convolution, addition and ReLU in one kernel.

Memory-bound work around convolutions costs a ResNet about half of its time. Folding is arithmetic on the weights; the
fused kernels are cuDNN's (``aten::cudnn_convolution_relu``) on a GPU and oneDNN's on a processor.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FusedConv(nn.Module):  # type: ignore[misc]
    """``relu(conv(x) + other)``, each part optional, in one kernel where the device has one."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros"
        assert isinstance(conv.padding, tuple)
        self.weight = conv.weight
        self.bias = conv.bias
        self.relu = relu
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups

    def forward(self, x: Any, other: Any = None) -> Any:
        """``x`` and ``other`` as images in channels-last layout."""
        shape = (self.stride, self.padding, self.dilation, self.groups)
        if x.is_cuda and self.relu and other is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *shape)
        if x.is_cuda and self.relu:
            return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, self.bias, *shape)
        if x.is_cuda or not torch.backends.mkldnn.is_available():
            y = functional.conv2d(x, self.weight, self.bias, *shape)
            y = y if other is None else y + other
            return functional.relu(y) if self.relu else y
        return self._on_processor(x, other)

    def _on_processor(self, x: Any, other: Any) -> Any:
        shape = (self.padding, self.stride, self.dilation, self.groups)
        convolution = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolution(x, self.weight, self.bias, *shape, "relu" if self.relu else "none", [], "")
        last = "relu" if self.relu else None
        return convolution.binary(x, other, self.weight, self.bias, *shape, "add", 1.0, last, [], None)


def fold_batch_norm(network: nn.Module) -> fx.GraphModule:
    """A copy in which each batch norm after a convolution is part of that convolution's weights.

    Raises:
        torch.fx.proxy.TraceError: the network's control flow depends on its data.
    """
    traced = fx.symbolic_trace(copy.deepcopy(network).eval())
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d) or len(before.users) > 1:
            continue
        folded = fuse_conv_bn_eval(modules[before.target], modules[node.target])
        _set(traced, before.target, folded)
        modules[before.target] = folded
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def fuse(network: nn.Module) -> fx.GraphModule:
    """:func:`fold_batch_norm`, then every ``relu(conv)`` and ``relu(conv + other)`` as one :class:`FusedConv`.

    Where ``other`` is itself a convolution without ReLU (a ResNet's projection), its bias moves into the first one's.
    """
    traced = fold_batch_norm(network)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if not _is_relu(node, modules) or len(node.args) < 1:
            continue
        inner = node.args[0]
        other = None
        if _is_add(inner) and len(inner.users) == 1:
            first, second = inner.args
            if not _is_conv(first, modules):
                first, second = second, first
            inner, other = first, second
        if not _is_conv(inner, modules):
            continue
        conv = modules[inner.target]
        if other is not None and _is_conv(other, modules) and modules[other.target].bias is not None:
            projection = modules[other.target]
            conv.bias = nn.Parameter(conv.bias + projection.bias, requires_grad=False)
            projection.bias = None
        fused = FusedConv(conv, relu=True)
        _set(traced, inner.target, fused)
        modules[inner.target] = fused
        added = node.args[0]
        with traced.graph.inserting_before(node):
            arguments = (inner.args[0],) if other is None else (inner.args[0], other)
            made = traced.graph.call_module(inner.target, arguments)
        node.replace_all_uses_with(made)
        traced.graph.erase_node(node)
        for old in dict.fromkeys((added, inner)):
            if not old.users:
                traced.graph.erase_node(old)
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced


def pad_input_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take ``channels`` instead of three, the new ones times zero; in place.

    Tensor cores read channels in groups: three are slower than four or eight.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | FusedConv):
            old = module.weight.data
            wide = old.new_zeros(old.shape[0], channels, *old.shape[2:])
            wide[:, : old.shape[1]] = old
            module.weight = nn.Parameter(wide, requires_grad=False)
            if isinstance(module, nn.Conv2d):
                module.in_channels = channels
            return


def _is_relu(node: Any, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[node.target], nn.ReLU)
    return node.op == "call_function" and node.target in (functional.relu, torch.relu)


def _is_add(node: Any) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_function"
        and node.target in (operator.add, operator.iadd, torch.add)
        and len(node.args) == 2
        and all(isinstance(argument, fx.Node) for argument in node.args)
    )


def _is_conv(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether ``node`` is a plain convolution that nothing else uses."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(modules[str(node.target)], nn.Conv2d)
        and len(node.users) == 1
    )


def _set(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
