"""Weights that do not belong to the model: one line that names the file, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from mlperf_exp import cli, networks
from mlperf_exp.data.tokens import synthetic
from mlperf_exp.errors import UserError
from mlperf_exp.kinds.images import synthetic as random_images
from mlperf_exp.messages import Plan
from mlperf_exp.plan import make_plan
from mlperf_exp.sut.forward import build


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words: str) -> Plan:
    return make_plan(compose("config", ["hw=cpu", *words]), Path("run"))


def refused(weights: Path, it: Plan, samples: Any) -> str:
    with pytest.raises(UserError) as caught:
        build.program(it, weights, samples).prepare("cpu")
    assert caught.value.key == "model.path"
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def test_of_another_image_classifier(tmp_path: Path) -> None:
    it = plan("model=resnet_tiny", "dataset=synthetic_images")
    images = random_images(it.config.model, 2, 1)
    file = tmp_path / "w.pth"
    torch.save(networks.build("resnet_tiny", 7).state_dict(), file)
    assert "are not those of resnet_tiny with 10 classes: size mismatch for fc.weight" in refused(file, it, images)
    deeper = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200)))
    torch.save(deeper.state_dict(), file)
    assert 'Missing key(s) in state_dict: "conv1.weight"' in refused(file, it, images)
    torch.save(deeper, file)  # a whole network, which would run code
    assert f"{file} cannot be read" in refused(file, it, images)
    file.write_bytes(b"no weights")
    assert f"{file} cannot be read" in refused(file, it, images)
    assert "has no weights" in refused(tmp_path / "empty", it, images)


def test_of_another_encoder(tmp_path: Path) -> None:
    it = plan("model=bert_tiny", "dataset=synthetic_questions")
    shape = it.config.model
    samples: Any = type("Set", (), {"tokens": synthetic(4, 20, 0.3, 64, shape.vocab_size, 1)})
    file = tmp_path / "model.bin"
    torch.save(networks.build("resnet_tiny", 10).state_dict(), file)
    assert "they have none of its names): they are of another architecture than bert_tiny" in refused(file, it, samples)
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(9, shape.hidden_size)}, file)
    assert "word_embeddings.weight is [9, 64] in the weights, and bert_tiny has [160, 64]" in refused(file, it, samples)


def test_random_weights_are_the_same_each_time_and_do_not_overflow() -> None:
    it = plan("model=resnet_tiny", "model.path=nothing", "model.weights=dummy", "dataset=synthetic_images")
    images = random_images(it.config.model, 8, 1)
    first: Any = build.program(it, None, images)
    torch.manual_seed(99)
    second: Any = build.program(it, None, images)
    assert all(
        torch.equal(a, b) for a, b in zip(first._network.parameters(), second._network.parameters(), strict=True)
    )
    largest = [0.0]

    def look(_: Any, __: Any, output: Any) -> None:
        largest[0] = max(largest[0], float(output.abs().max()))

    for module in first._network.modules():
        module.register_forward_hook(look)
    with torch.inference_mode():
        first._network.eval()(torch.randn(4, 3, 32, 32) * 2)
    assert largest[0] < 6e3, "a tenth of what half precision can hold"
