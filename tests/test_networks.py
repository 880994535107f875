"""What a configuration says of a network's work, against the network itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from mlperf_exp import cli, networks
from mlperf_exp.sut.forward.fuse import fuse


@pytest.mark.parametrize(("name", "side"), [("resnet50", 224), ("resnet101", 224), ("resnet_tiny", 32)])
def test_the_work_of_a_sample_is_the_networks(name: str, side: int) -> None:
    said = yaml.safe_load((cli.conf_dir() / "model" / f"{name}.yaml").read_text())["model"]
    network = networks.build(name, said.get("classes", 1000)).eval()
    image = torch.zeros(1, 3, side, side)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(said["gflops_per_sample"], rel=2e-3)
    fused, moved = fuse(network), [0]

    def look(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
        moved[0] += sum(value.numel() for value in (*arguments, output))

    for module in fused.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    with torch.inference_mode():
        fused(image)
    assert moved[0] / 1e6 == pytest.approx(said["mvalues_per_sample"], rel=1e-3)
