"""The networks that classify images, by name; imports torch. Training builds the same ones.

``resnet50`` and ``resnet101`` are torchvision's, so that their published weights fit; ``resnet_tiny`` is a small ResNet
of the same layers that learns handwritten digits within a minute on a processor.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

PUBLISHED = {  # files of torchvision's first weights, 76.13 and 77.37 % top-1, with resize to 256 and centre of 224
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}


def build(name: str, num_classes: int) -> nn.Module:
    """A network with random weights; takes float images ``[N, 3, H, W]``, gives logits ``[N, num_classes]``.

    Raises:
        KeyError: there is no such network.
    """
    network: nn.Module = NETWORKS[name](num_classes)
    return network


def _resnet50(num_classes: int) -> nn.Module:
    network: nn.Module = models.resnet50(num_classes=num_classes)
    return network


def _resnet101(num_classes: int) -> nn.Module:
    network: nn.Module = models.resnet101(num_classes=num_classes)
    return network


def _resnet_tiny(num_classes: int) -> nn.Module:
    """Four stages of one block each, 16 to 128 channels, without the first pooling: for images of 32 to 64 pixels."""
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 16, 3, stride=1, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(16)
    network.maxpool = nn.Identity()
    network.inplanes = 16
    for place, channels in enumerate((16, 32, 64, 128), start=1):
        layer = network._make_layer(BasicBlock, channels, 1, stride=1 if place == 1 else 2)
        setattr(network, f"layer{place}", layer)
    network.fc = nn.Linear(128, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    made: nn.Module = network
    return made


NETWORKS: dict[str, Any] = {"resnet50": _resnet50, "resnet101": _resnet101, "resnet_tiny": _resnet_tiny}
