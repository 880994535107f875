"""The verdict on a training, rule by rule, on a measurement that is good but for what each test changes."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.judge import judge
from mlperf_exp.messages import ComplianceTest, Measurement, Score
from mlperf_exp.plan import make_plan


@pytest.fixture(scope="module", autouse=True)
def hydra():
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words):
    return make_plan(compose("config", ["model=resnet50", "hw=8xh100", "scenario=train", *words]), Path("run"))


GOOD = Measurement(
    {"epochs": 35.0, "top1": 75.95},
    {},
    compliance=(ComplianceTest("mllog", True, {"ruleset 4.0.0": True}, Path()),),
    score=Score({"top1": 75.95}, 50_000),
    training={"status": "reached", "first_step": 0, "train_samples": 1_281_167, "eval_samples": 50_000},
)


def test_a_run_that_reaches_the_target_by_the_rules_is_valid():
    verdict = judge(plan(), GOOD)
    assert verdict.valid, verdict.reasons
    assert verdict.accuracy["passed"] is True
    assert verdict.accuracy["targets"]["minimum"] == {"top1": 75.9}
    assert verdict.compliance["mllog"]["passed"] is True
    assert any("One run of the 5 that make a result" in warning for warning in verdict.warnings)


@pytest.mark.parametrize(
    ("words", "changed", "says"),
    [
        ("", {"score": Score({"top1": 75.8}, 50_000)}, "The target was not reached: top1 75.80 after 35 epochs"),
        ("", {"score": Score({"top1": float("nan")}, 50_000)}, "The target was not reached"),
        ("", {"score": None}, "Accuracy was not measured"),
        ("", {"failure": "rank 3 on n1 was killed by SIGKILL"}, "did not come to its end: rank 3 on n1"),
        ("dataset=synthetic_images", {}, "The samples are random"),
        ("scenario.steps=100", {}, "after 100 steps, good for speed only"),
        ("", {"training": GOOD.training | {"first_step": 500}}, "went on from a checkpoint at step 500"),
        ("", {"training": GOOD.training | {"train_samples": 1437}}, "1,437 train samples, the benchmark's 1,281,167"),
        ("scenario.target=70", {}, "below MLPerf's 75.9"),
        ("scenario.label_smoothing=0.2", {}, "scenario.label_smoothing=0.2 is not the closed division's"),
        ("scenario.weight_decay=3e-5", {}, "0.0001 times a power of two"),
        ("scenario.eval_period=1", {}, "scenario.eval_period=1"),
        ("model=resnet101", {}, "is no benchmark of MLPerf Training"),
        (
            "",
            {"compliance": (ComplianceTest("mllog", False, {}, Path(), reasons=("no run_stop",)),)},
            "mllog failed: no run_stop",
        ),
    ],
)
def test_each_rule_has_its_reason(words, changed, says):
    verdict = judge(plan(*words.split()), replace(GOOD, **changed))
    assert not verdict.valid
    assert any(says in reason for reason in verdict.reasons), verdict.reasons


def test_the_open_division_takes_other_models_targets_and_hyperparameters():
    it = plan("model=resnet101", "division=open", "scenario.target=60", "scenario.label_smoothing=0.2")
    assert judge(it, replace(GOOD, training=GOOD.training | {"train_samples": 10})).valid
    missed = judge(it, replace(GOOD, score=Score({"top1": 59.0}, 50_000)))
    assert not missed.valid
    without = judge(plan("model=resnet101", "division=open"), GOOD)
    assert any("There was no target to reach" in reason for reason in without.reasons)
