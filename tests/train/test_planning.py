"""What the plan fills in for a training, and what it refuses; the environment of several nodes."""

import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mlperf_exp import cli
from mlperf_exp.errors import UserError
from mlperf_exp.plan import make_plan
from mlperf_exp.train import image_kind, nodes
from mlperf_exp.train.hyperparameters import LARS


@pytest.fixture(scope="module", autouse=True)
def hydra():
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*words):
    return make_plan(compose("config", ["model=resnet50", "scenario=train", *words]), Path("run"))


def refusal(*words):
    with pytest.raises(UserError) as caught:
        plan(*words)
    return caught.value


@pytest.mark.parametrize(
    ("hw", "batch", "ranks", "at_once", "accumulation", "point"),
    [
        ("2x8xh100", 3264, 16, 204, 1, LARS[1]),
        ("8xh100", 1632, 8, 204, 1, LARS[0]),
        ("h200", 1632, 1, 408, 4, LARS[0]),
        ("a30", 1632, 1, 204, 8, LARS[0]),
    ],
)
def test_a_gpu_s_batches_are_reference_points(hw, batch, ranks, at_once, accumulation, point):
    it = plan(f"hw={hw}")
    rules = it.config.scenario
    assert rules.global_batch_size == batch
    assert (it.engine["ranks"], it.engine["micro_batch"], it.engine["accumulation"]) == (ranks, at_once, accumulation)
    assert (rules.base_lr, rules.warmup_epochs, rules.weight_decay) == (
        point.base_lr, point.warmup_epochs, point.weight_decay,
    )  # fmt: skip
    assert round(rules.decay_epochs * 1_281_167 / batch) == point.decay_steps
    assert rules.target == 75.9
    # the epoch at which the reference ends in the mean is evaluated
    assert round(point.epochs) % rules.eval_period == rules.eval_offset % rules.eval_period
    assert rules.max_epochs >= round(point.epochs)
    assert (it.engine["precision"], it.engine["compile"]) == ("bf16", True)


def test_what_is_given_is_kept():
    it = plan("hw=h200", "scenario.global_batch_size=4096", "scenario.base_lr=3", "backend.micro_batch=256")
    assert (it.config.scenario.base_lr, it.config.scenario.weight_decay) == (3.0, 2e-4)
    assert it.engine["accumulation"] == 16
    assert "scenario.base_lr" not in {one.key for one in it.derived}


def test_sgd_gets_its_own_hyperparameters():
    rules = plan("hw=8xh100", "scenario.optimizer=sgd").config.scenario
    assert rules.base_lr == pytest.approx(0.1 * 1632 / 256, abs=5e-4)
    assert round(rules.base_lr * 1000, 9) % 1 == 0  # MLPerf: 0.001 times a whole number
    assert (rules.warmup_epochs, rules.max_epochs) == (5, 90)


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        ("hw=2x8xh100 scenario.global_batch_size=100", "scenario.global_batch_size", "16 processes. Give 96 or 112"),
        ("hw=8xh100 scenario.global_batch_size=4", "scenario.global_batch_size", "Give 8"),
        ("hw=h200 backend.micro_batch=1000 scenario.global_batch_size=1632", "backend.micro_batch", "1,632"),
        ("hw=h200 scenario.target=101", "scenario.target", "at most 100"),
        ("hw=h200 backend=torch", "backend", "serves, and not in scenario=train"),
        ("hw=h200 repeats=5", "repeats", "several seeds"),
        ("hw=h200 search=max_qps", "search", "has no rate"),
        ("hw=h200 model=bert_base", "backend", "does not run bert_base"),
        ("hw=h200 tracking.uri=http://a:b@h", "tracking.uri", "user name"),
        ("hw=cpu backend.loader=nvjpeg", "backend.loader", "nvjpeg decodes on an NVIDIA GPU, and hw=cpu has none"),
    ],
)
def test_slips_are_refused_by_their_key(words, key, says):
    error = refusal(*words.split())
    assert error.key == key
    assert says in str(error)


@pytest.mark.parametrize("words", ["hw=h200", "hw=h200 backend.loader=nvjpeg", "hw=cpu backend.loader=dali"])
def test_a_loader_reaches_the_ranks(words):
    loader = words.partition("loader=")[2] or "torchvision"
    it = plan(*words.split())
    assert it.engine["loader"] == image_kind.task(it).loader == loader


def test_a_package_that_lacks_is_named_with_its_command_before_anything_starts(monkeypatch):
    it = plan("hw=cpu", "backend.loader=dali", "dataset.path=/nowhere")
    monkeypatch.setattr(image_kind, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package nvidia-dali-cuda130") as caught:
        image_kind.find(it)
    assert caught.value.key == "backend.loader=dali"
    assert caught.value.remedy == 'Run: pip install "mlperf-exp[dali]"'


def test_training_is_not_a_backend_for_serving():
    with pytest.raises(UserError, match="backend: lightning trains, and not in scenario=offline"):
        make_plan(compose("config", ["model=resnet50", "backend=lightning"]), Path("run"))


def test_every_batch_size_has_finite_hyperparameters():
    for batch in (16, 1600, 5008, 100_000):
        rules = plan("hw=2x8xh100", f"scenario.global_batch_size={batch}").config.scenario
        values = (rules.base_lr, rules.warmup_epochs, rules.decay_epochs, rules.weight_decay, rules.max_epochs)
        assert all(math.isfinite(value) and value > 0 for value in values)


def hardware(words):
    return compose("config", ["model=resnet50", "scenario=train", *words.split()]).hw


@pytest.mark.parametrize(
    ("variables", "words", "expected"),
    [
        ({}, "hw=8xh100", (True, True)),
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "hw=8xh100", (False, False)),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "hw=2x8xh100", (True, True)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "hw=2x8xh100", (True, False)),
        (
            {"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8",
             "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "hw=2x8xh100", (True, False),
        ),
    ],
)  # fmt: skip
def test_a_process_finds_its_place_by_torchrun_s_variables(monkeypatch, variables, words, expected):
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    here = nodes.place(hardware(words))
    assert (here.first_on_node, here.first) == expected


@pytest.mark.parametrize(
    ("variables", "words", "says"),
    [
        ({}, "hw=2x8xh100", "tells of no others.*torchrun --nnodes=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "hw=h200", "tells of 2. Give hw.nodes=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "hw=2x8xh100", "lacks MASTER_ADDR"),
    ],
)
def test_an_environment_of_other_nodes_is_refused(monkeypatch, variables, words, says):
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as caught:
        nodes.place(hardware(words))
    assert caught.value.key == "hw.nodes"
