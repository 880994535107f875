"""Models, tokenizers, data and machines are found, or missed by name; and LoadGen takes the plan's word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli, inputs, running
from mlperf_exp.errors import UserError
from mlperf_exp.kinds.decoder import RougeScorer
from mlperf_exp.loadgen import settings
from mlperf_exp.messages import Plan
from mlperf_exp.plan import make_plan
from mlperf_exp.tiny_llama import ensure


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def plan(*overrides: str) -> Plan:
    return make_plan(compose("config", ["model=llama3_tiny", *overrides]), Path("run"))


def refusal(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        inputs.load(plan(*overrides))
    return caught.value


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return ensure(tmp_path / "checkpoint")


def data(path: Path, **changed: Any) -> str:
    record = {"instruction": "", "input": "An article.", "output": "A summary.", "tok_input": [0, 5, 7]} | changed
    path.write_text(json.dumps([record] * 3))
    return f"dataset.path={path}"


def test_the_tiny_model_and_its_articles_need_nothing() -> None:
    found = inputs.load(plan())
    assert found.model is not None and (found.model / "model.safetensors").exists()
    assert len(found.samples) >= 64
    assert found.prompt_tokens == [len(sample.tokens) for sample in found.samples]
    assert isinstance(found.scorer, RougeScorer)
    first = found.samples[0]
    assert first.tokens[0] == 0, "the begin-of-text token"
    assert "Summary:" in found.scorer.decode([list(first.tokens)])[0]


@pytest.mark.parametrize("piece", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_without_a_piece_is_refused_by_it(checkpoint: Path, piece: str) -> None:
    (checkpoint / piece).unlink()
    error = refusal(f"model.path={checkpoint}")
    assert error.key == "model.path"
    assert f"{checkpoint} has no {'weights' if 'safe' in piece else piece}" in error.problem


def test_a_shard_that_is_missing_is_named(checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    error = refusal(f"model.path={checkpoint}")
    assert (error.key, error.remedy) == ("model.path", "Fetch the model again")
    assert "lacks model-2.safetensors" in error.problem
    index.write_text("[1")
    assert "cannot be read" in refusal(f"model.path={checkpoint}").problem


def test_a_broken_tokenizer_is_the_users_matter(checkpoint: Path) -> None:
    whole = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").write_text(whole[: len(whole) // 2])
    error = refusal(f"model.path={checkpoint}")
    assert error.key == "model.path" and "tokenizer.json cannot be read" in error.problem


def test_token_ids_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = data(tmp_path / "d.json")
    read = inputs.load(plan("dataset=cnn_dailymail", file)).samples
    assert [sample.tokens for sample in read] == [(0, 5, 7)] * 3
    error = refusal("dataset=cnn_dailymail", data(tmp_path / "d.json", tok_input=[0, 128000]))
    assert error.key == "dataset.path" and "128000" in error.problem


def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    word = data(tmp_path / "d.json", tok_input=[1] * 500)
    error = refusal("dataset=cnn_dailymail", word, "backend.engine.max_model_len=600")
    assert error.key == "dataset.path" and "472" in error.problem and "500" in error.problem


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["dataset=cnn_dailymail"], "dataset.path"),
        (["dataset=cnn_dailymail", "dataset.path=null"], "dataset.path"),
        (["dataset.samples=100000"], "dataset.samples"),
        (["scenario.samples=100000"], "scenario.samples"),
        (["model.path=nobody/nothing"], "model.path"),
        (["model.path=not//a name"], "model.path"),
    ],
)
def test_what_is_not_there_is_missed_by_name(monkeypatch: pytest.MonkeyPatch, words: list[str], key: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refusal(*words)
    assert error.key == key
    assert "None" not in str(error)


def test_dummy_weights_take_random_prompts_of_the_data_sets_lengths() -> None:
    it = make_plan(
        compose("config", ["model.weights=dummy", "hw=cpu", "dataset.samples=200", "hw.memory_gib=0.001",
                           "model.architecture.layers=1", "model.architecture.parameters=1000"]), Path("run")
    )  # fmt: skip
    found = inputs.load(it)
    assert len(found.samples) == 200
    assert [d.value for d in found.derived] == ["synthetic"]
    assert max(found.prompt_tokens) <= 2540 and 500 < sum(found.prompt_tokens) / 200 < 1100
    assert found.model is not None
    written = json.loads((found.model / "config.json").read_text())
    assert (written["num_hidden_layers"], written["vocab_size"]) == (1, 128256)
    again = inputs.load(it)
    assert again.samples == found.samples and again.model == found.model


def test_a_profile_with_gpus_is_refused_without(somewhere: Path) -> None:
    error = refusal("hw=a30")
    assert error.key == "hw" and "which has none" in error.problem


def test_profile_and_machine_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho '0, NVIDIA L4, 23034, 9000, 550.54'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    another, less, used = inputs.check_machine(plan("hw=a30"))
    assert "describes a NVIDIA A30, this machine has a NVIDIA L4" in another
    assert "says 23.5 GiB a GPU, the driver 22.5 GiB" in less
    assert "in use by others: 8.8 GiB" in used
    with monkeypatch.context() as within:  # memory of the engine that the sweep's last job left is not others'
        within.setattr(running, "_kept", object())
        assert len(inputs.check_machine(plan("hw=a30"))) == 2
    with pytest.raises(UserError, match=r"wants 8 NVIDIA GPUs on this machine, which has 1 \(NVIDIA L4\)"):
        inputs.check_machine(plan("hw=8xh100"))
    assert inputs.check_machine(plan("hw=8xh100", "backend=simulated")) == ()


@pytest.mark.parametrize("scenario", ["offline", "server", "interactive", "single_stream"])
@pytest.mark.parametrize("model", ["llama3_8b", "llama3_8b_edge", "llama3_tiny"])
def test_loadgen_knows_each_benchmark_and_takes_the_plans_figures(model: str, scenario: str) -> None:
    if model == "llama3_8b_edge" and scenario in ("server", "interactive"):
        with pytest.raises(UserError):
            plan(f"model={model}", f"scenario={scenario}")
        return
    words = [f"model={model}", f"scenario={scenario}", "scenario.min_query_count=77", "scenario.min_duration_s=1.5"]
    it = plan(*words, "backend=simulated", "scenario.target_qps=3.5")
    chosen, user_conf = settings(it, "performance", total_samples=1000)
    assert chosen.use_token_latencies or scenario in ("offline", "single_stream")
    assert (chosen.min_duration_ms, chosen.min_query_count) == (1500, 77)
    assert chosen.qsl_rng_seed != 0, "the round's seeds"
    if scenario in ("server", "interactive"):
        bounds = it.config.scenario
        assert (chosen.ttft_latency, chosen.tpot_latency) == (bounds.ttft_ms * 1e6, bounds.tpot_ms * 1e6)
        assert chosen.server_target_qps == 3.5
    assert "min_duration = 1500" in user_conf and "min_query_count = 77" in user_conf
