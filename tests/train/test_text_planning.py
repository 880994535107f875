"""What the plan fills in for pre-training, what it refuses, and the closed division's rules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlperf_logging import rcp_checker

from mlperf_exp import cli
from mlperf_exp.data import indexed
from mlperf_exp.errors import UserError
from mlperf_exp.judge import judge
from mlperf_exp.messages import ComplianceTest, Measurement, Score
from mlperf_exp.plan import make_plan
from mlperf_exp.train import handover, kind, sources
from mlperf_exp.train.text import reference


@pytest.fixture(scope="module", autouse=True)
def hydra():
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words, model="llama3_8b_pretrain"):
    return make_plan(compose("config", [f"model={model}", "scenario=train", *words]), Path("run"))


@pytest.mark.parametrize(
    ("hw", "batch", "at_once", "accumulation", "recompute"),
    [
        ("hw=8xh100", 16, 1, 2, False),
        ("hw=2x8xh100", 16, 1, 1, False),
        ("hw=h100 hw.gpus_per_node=4", 16, 4, 1, True),  # 30 GiB of states a GPU leave no room for all activations
        ("hw=8xh100 hw.nodes=3", 96, 1, 4, False),
        ("hw=8xh100 scenario.global_batch_size=64 backend.micro_batch=4", 64, 4, 2, True),
    ],
)
def test_a_step_is_a_reference_point_that_fits_the_cards(hw, batch, at_once, accumulation, recompute):
    it = plan(*hw.split())
    rules, settings = it.config.scenario, it.engine
    assert rules.global_batch_size == batch
    assert (settings["micro_batch"], settings["accumulation"]) == (at_once, accumulation)
    assert settings["recompute"] is recompute
    point, _ = reference.reference(batch)
    assert (rules.base_lr, rules.warmup_steps) == (point.base_lr, point.warmup_steps)
    assert rules.end_lr == pytest.approx(0.1 * point.base_lr)
    assert (rules.max_steps, rules.target, rules.eval_samples) == (1_200_000, 3.3, 1024)
    assert (settings["precision"], settings["compile"]) == ("bf16", True)


def test_the_reference_points_are_those_of_the_real_checker():
    text = (Path(rcp_checker.__file__).parent / "training_6.1.0" / "rcps_llama31_8b.json").read_text()
    published = {entry["BS"]: entry for entry in json.loads(text).values()}
    assert sorted(published) == [point.global_batch for point in reference.POINTS]
    for point in reference.POINTS:
        entry = published[point.global_batch]
        given, samples = entry["Hyperparams"], entry["Epochs to converge"]
        assert given["opt_base_learning_rate"] == point.base_lr
        assert given["opt_learning_rate_warmup_samples"] == point.warmup_samples
        assert sum(samples) / len(samples) == pytest.approx(point.samples, abs=1)


def test_between_and_beyond_the_points():
    between, why = reference.reference(48)
    assert between.base_lr == 8e-4
    assert 4096 < between.warmup_samples < 6144
    assert "32" in why
    assert "64" in why
    assert reference.reference(256)[0].base_lr == pytest.approx(2e-3 * 2**0.5)


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        ("hw=h100", "hw", "its GPU would need .* GiB of 75 that can be planned with, 120 of them for weights"),
        ("hw=2xa30", "hw", "each of 2 GPUs would need"),
        ("hw=8xh100 backend.micro_batch=64", "backend.micro_batch", "Give backend.micro_batch=\\d+ or less"),
        ("hw=8xh100 scenario.optimizer=lars", "scenario.optimizer", "lars is not for text"),
        ("hw=8xh100 scenario.flip=true", "scenario.flip", "on sequences has no such setting"),
        ("hw=8xh100 scenario.max_epochs=3", "scenario.max_epochs", "no such setting"),
        ("hw=8xh100 scenario.max_steps=10", "scenario.warmup_steps", "leave nothing"),
        ("hw=8xh100 model.sequence_length=200000", "model.sequence_length", "131,072"),
        ("hw=8xh100 dataset=digits", "dataset", "reads tokens"),
        ("hw=8xh100 scenario=offline", "backend", "lightning trains"),
    ],
)
def test_slips_are_refused_by_their_key(words, key, says):
    with pytest.raises(UserError, match=says) as caught:
        plan(*words.split())
    assert caught.value.key == key


@pytest.mark.parametrize("key", ["scenario.max_steps=9", "scenario.clip_norm=2", "backend.recompute=true"])
def test_images_have_no_settings_of_text(key):
    with pytest.raises(UserError, match="on images has no such setting"):
        plan("hw=8xh100", key, model="resnet50")


def test_a_model_of_no_benchmark_gets_a_short_training():
    rules = plan("hw=cpu", model="llama3_tiny_pretrain").config.scenario
    assert 5e-4 < rules.base_lr < 5e-3
    assert (rules.max_steps, rules.warmup_steps, rules.target) == (400, 40, None)


def test_evaluations_come_every_12288_samples_rounded_up_to_steps():
    it = plan("hw=8xh100", "scenario.global_batch_size=120")
    job = handover.make_job(it, sources.Inputs(None, kind.TrainingData(Path("c4"), 5_000_000, 1024), None))
    assert json.loads(json.dumps(job.identity())) == job.identity()  # what is beside a checkpoint
    assert job.evaluation_steps()[:2] == [103, 206]
    assert job.evaluation_steps()[-1] == job.total_steps == 1_200_000
    assert (job.optimization.warmup_steps, job.optimization.decay_steps) == (
        it.config.scenario.warmup_steps, 1_200_000 - it.config.scenario.warmup_steps,
    )  # fmt: skip


def test_utilization_counts_what_multiplies():
    it = plan("hw=8xh100")
    shape = it.config.model.architecture
    a_token = 6 * (shape.parameters - 128_256 * 4096) + 6 * 32 * 4096 * 8192
    assert kind.of(it.config.model).sample_flops(it) == 8192 * a_token
    assert kind.of(it.config.model).sample_tokens(it) == 8192


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "dataset=c4 dataset.path=/nowhere",
            "no folder /nowhere. Give the one that holds c4-train.en_6_text_document.bin",
        ),
        ("dataset=c4 dataset.path={tmp}", "there is no .*c4-train.en_6_text_document.idx"),
        ("dataset=c4 dataset.samples=5", "training takes all of the data set"),
        ("scenario.eval_samples=1024", "and 1,024 are to be evaluated"),
        ("scenario.global_batch_size=4096", "one step takes 4,096 sequences, the data set has 10"),
        ("backend.processes=12", "10 sequences are fewer than the 12 ranks"),
        ("dataset.train=[]", "dataset.train: names no file"),
    ],
)
def test_data_that_is_not_there_gets_one_line(words, says, tmp_path):
    for name in ("tiny-train_text_document", "tiny-validation_text_document"):
        indexed.write(tmp_path / name, [[1] * 1300])
    given = words.format(tmp=tmp_path).split()
    path = () if "dataset.path" in words else (f"dataset.path={tmp_path}",)
    with pytest.raises(UserError, match=says):
        sources.load(plan("hw=cpu", *path, *given, model="llama3_tiny_pretrain"))


GOOD = Measurement(
    {"epochs": 0.03, "log_perplexity": 3.29},
    {},
    compliance=(ComplianceTest("mllog", True, {"ruleset 6.1.0": True}, Path()),),
    score=Score({"log_perplexity": 3.29}, 1024),
    training={"status": "reached", "first_step": 0, "train_samples": 5_000_000, "eval_samples": 1024},
)


def test_a_run_that_reaches_the_target_by_the_rules_is_valid():
    verdict = judge(plan("hw=8xh100"), GOOD)
    assert verdict.valid, verdict.reasons
    assert verdict.accuracy["targets"]["maximum"] == {"log_perplexity": 3.3}
    assert any("One run of the 10 that make a result" in warning for warning in verdict.warnings)
    assert not any("accepted this benchmark last" in warning for warning in verdict.warnings)


@pytest.mark.parametrize(
    ("words", "changed", "says"),
    [
        ("", {"score": Score({"log_perplexity": 3.31}, 1024)}, "The target was not reached: log_perplexity 3.31"),
        ("", {"score": Score({"log_perplexity": float("nan")}, 1024)}, "The target was not reached"),
        ("scenario.target=4", {}, "scenario.target=4 is above MLPerf's 3.3"),
        ("dataset=synthetic_tokens", {}, "The samples are random"),
        ("dataset=tiny_texts", {}, "The closed division trains on c4-train.en_6_text_document"),
        ("scenario.eval_samples=93", {}, "scenario.eval_samples=93 is not the closed division's: it wants 1,024"),
        ("scenario.eval_every_samples=1024", {}, "it wants 12,288"),
        ("scenario.max_steps=1000", {}, "it wants 1,200,000"),
        ("scenario.weight_decay=0.2", {}, "scenario.weight_decay=0.2"),
        ("scenario.clip_norm=2", {}, "scenario.clip_norm=2"),
        ("scenario.end_lr=1e-4", {}, "a tenth of scenario.base_lr"),
        ("model.sequence_length=4096", {}, "8,192 tokens, not 4,096"),
        ("model.architecture.layers=16", {}, "model.architecture.layers=16 is not Llama 3.1 8B's: it has 32"),
        ("model=llama3_tiny_pretrain hw=cpu", {}, "is no benchmark of MLPerf Training: run it with division=open"),
    ],
)
def test_each_rule_has_its_reason(words, changed, says):
    verdict = judge(plan("hw=8xh100", *words.split()), replace(GOOD, **changed))
    assert not verdict.valid
    assert any(says in reason for reason in verdict.reasons), verdict.reasons
