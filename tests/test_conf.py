"""Every file in ``conf/``: composes with every other, states only what its schema has, and agrees with itself."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from mlperf_exp import cli, config
from mlperf_exp.errors import UserError
from mlperf_exp.plan import make_plan

CONF = cli.conf_dir()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides))


RUN_BY = {
    config.Decoder: ("vllm", "openai", "simulated"),
    config.ImageClassifier: ("torch", "lightning"),
    config.ExtractiveQa: ("torch",),
    config.LanguageModel: ("lightning",),
}


def needed(model: config.Model, hw: config.Hardware, scenario: Any, backend: str) -> str | None:
    """The key that a combination must be refused for, by rule; None: it must be planned."""
    if backend not in RUN_BY[type(model)]:
        return "backend"  # not of its kind
    if isinstance(scenario, config.Training) is not (backend == "lightning"):
        return "backend"  # one trains, the others serve
    if (model.benchmark or "").endswith("-edge") and scenario.name.value not in ("Offline", "SingleStream"):
        return "scenario"  # MLPerf has no such scenario at the edge
    if isinstance(model, config.LanguageModel) and hw.device is config.Device.cuda:
        accelerators = hw.nodes * hw.gpus_per_node
        if 16 * model.architecture.parameters / accelerators > 0.8 * hw.memory_gib * 2**30:
            return "hw"  # weights, gradients and the optimizer's state alone do not fit
    if backend in ("vllm", "torch") and hw.nodes > 1:
        return "hw"  # no Ray cluster over the nodes is named
    return None


MODES = {"simulated": ("performance",), "lightning": ("train",)}


@functools.cache
def composed_alone(group: str) -> dict[str, DictConfig]:
    urls = {"openai": ["backend.urls=[http://localhost:8000]"]}
    return {name: composed(f"{group}={name}", *urls.get(name, ()))[group] for name in options(group)}


@pytest.mark.parametrize("scenario", options("scenario"))
@pytest.mark.parametrize("backend", options("backend"))
@pytest.mark.parametrize("model", options("model"))
def test_groups_are_composed_independently_of_each_other(model: str, scenario: str, backend: str) -> None:
    """What the next test builds on: it puts composed groups together instead of composing 360 times."""
    urls = ["backend.urls=[http://localhost:8000]"] if backend == "openai" else []
    cfg = composed(f"model={model}", f"scenario={scenario}", f"backend={backend}", *urls)
    assert cfg.scenario == composed_alone("scenario")[scenario]
    assert cfg.backend == composed_alone("backend")[backend]
    assert cfg.model == composed_alone("model")[model]


@pytest.mark.parametrize("hw", options("hw"))
@pytest.mark.parametrize("model", options("model"))
def test_every_combination_is_planned_or_refused_with_a_reason(model: str, hw: str, tmp_path: Path) -> None:
    refused = planned = 0
    base = composed(f"model={model}", f"hw={hw}")
    for scenario, backend in itertools.product(options("scenario"), options("backend")):
        what = f"model={model} hw={hw} scenario={scenario} backend={backend}"
        if f"{backend}_{model}_{hw}_{scenario}" in options("tuning"):
            cfg = composed(*what.split())
        else:
            cfg = base
            cfg.scenario, cfg.backend = composed_alone("scenario")[scenario], composed_alone("backend")[backend]
        parts = OmegaConf.to_object(cfg)
        assert isinstance(parts, config.Config)
        assert (parts.hw.name, parts.scenario.name.name, parts.backend.name) == (hw, scenario, backend)
        key = needed(parts.model, parts.hw, parts.scenario, backend)
        if key is None:
            plan = make_plan(cfg, tmp_path)
            assert plan.modes == MODES.get(backend, ("performance", "accuracy")), what
            assert bool(plan.engine) == (backend in ("vllm", "torch", "lightning"))
            planned += 1
        else:
            with pytest.raises(UserError) as caught:
                make_plan(cfg, tmp_path)
            assert caught.value.key == key, what
            assert caught.value.problem, what
            assert caught.value.remedy, what
            refused += 1
    assert refused
    if base.model.name != "llama3_8b_pretrain":  # which few profiles can train
        able = {"vllm", "lightning"} & set(RUN_BY[type(OmegaConf.to_object(base.model))])
        assert bool(planned) == (not hw.startswith("2x") or bool(able))


@pytest.mark.parametrize("dataset", options("dataset"))
@pytest.mark.parametrize("model", options("model"))
def test_every_dataset_goes_with_every_model_of_its_kind(model: str, dataset: str, tmp_path: Path) -> None:
    cfg = composed(f"model={model}", f"dataset={dataset}")
    if OmegaConf.get_type(cfg.dataset) is not config.READS[OmegaConf.get_type(cfg.model)]:
        with pytest.raises(UserError) as caught:
            make_plan(cfg, tmp_path)
        assert caught.value.key == "dataset"
        return
    if OmegaConf.get_type(cfg.model) is config.LanguageModel:  # is trained only
        cfg = composed(f"model={model}", f"dataset={dataset}", "scenario=train", "hw=8xh100")
        assert make_plan(cfg, tmp_path).config.dataset.name == dataset
        return
    plan = make_plan(cfg, tmp_path)
    assert plan.config.dataset.name == dataset
    assert ("accuracy" in plan.modes) == (not dataset.startswith("synthetic"))


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("llama3_8b", "cnn_dailymail"),
        ("llama3_8b_edge", "cnn_dailymail_edge"),
        ("llama3_tiny", "articles"),
        ("resnet50", "imagenet"),
        ("bert_large", "squad"),
        ("llama3_8b_pretrain", "c4"),
        ("llama3_tiny_pretrain", "tiny_texts"),
    ],
)
def test_each_model_brings_its_data_set(model: str, dataset: str) -> None:
    assert composed(f"model={model}").dataset.name == dataset


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiments_are_planned_and_yield_to_the_command_line(experiment: str, tmp_path: Path) -> None:
    plan = make_plan(composed(f"experiment={experiment}"), tmp_path)
    assert plan.config.name
    key = "base_lr" if plan.modes == ("train",) else "target_qps"
    other = make_plan(composed(f"experiment={experiment}", "name=mine", f"scenario.{key}=3"), tmp_path)
    assert (other.config.name, getattr(other.config.scenario, key)) == ("mine", 3.0)


def test_every_file_is_an_option_of_a_group_that_the_tests_go_through() -> None:
    known = {"model", "dataset", "hw", "scenario", "backend", "experiment"}
    for path in CONF.rglob("*.yaml"):
        where = path.relative_to(CONF)
        if where.parts[0] == "hydra":
            text = (CONF / "config.yaml").read_text()
            assert f"override {where.parent}: {path.stem}\n" in text, f"{where} is not used"
        elif where.parts[0] == "tuning":
            assert any(
                path.stem == "_".join(names)
                for names in itertools.product(options("backend"), options("model"), options("hw"), options("scenario"))
            ), f"{where} names no backend_model_hw_scenario"
        else:
            files = {"config.yaml", "doctor.yaml", "launching.yaml"}
            assert where.parts[0] in files | known, f"{where} is not used"


def keys(node: Any, schema: Any, path: str) -> Iterator[str]:
    """The keys of ``node`` that the dataclass ``schema`` does not have."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name, value in node.items():
        if name not in fields:
            yield f"{path}.{name}"
            continue
        inner = OmegaConf.structured(schema)
        child = OmegaConf.get_type(inner, name)
        if isinstance(value, dict) and dataclasses.is_dataclass(child):
            yield from keys(value, child, f"{path}.{name}")


SCHEMAS = {
    "hw": config.Hardware,
    "scenario": config.ScenarioRules,
}
TRAINING = {"train"}  # scenarios of their own schema


@pytest.mark.parametrize("group", SCHEMAS)
def test_files_state_only_keys_of_their_schema(group: str) -> None:
    for option in options(group):
        node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
        assert node.pop("defaults")[-1] == "_self_", f"{group}/{option}"
        schema: Any = SCHEMAS[group]
        if group == "scenario" and option in TRAINING:
            assert list(node) == ["scenario"]
            node, schema = node["scenario"], config.Training
        assert not list(keys(node, schema, f"{group}/{option}"))
        assert node["name"] == option


def test_training_brings_its_backend_whatever_the_model_s_own() -> None:
    for words in (("model=resnet50", "scenario=train"), ("scenario=train", "model=resnet50", "hw=2x8xh100")):
        assert composed(*words).backend.name == "lightning"


def schema_of(node: dict[str, Any], group: str, kinds: dict[str, Any]) -> Any:
    """The dataclass that a file's defaults name."""
    (named,) = [entry for entry in node.pop("defaults") if str(entry).startswith(f"/schema/{group}/")]
    return kinds[str(named).split("/")[-1].split("@")[0]]


def test_dataset_files_state_only_keys_of_their_schema() -> None:
    for option in options("dataset"):
        node = yaml.safe_load((CONF / "dataset" / f"{option}.yaml").read_text())
        schema = schema_of(node, "dataset", config.DATASETS)
        assert not list(keys(node, schema, f"dataset/{option}"))
        assert node["name"] == option


def test_backend_and_model_files_state_only_keys_of_their_schema() -> None:
    for option in options("backend"):
        node = yaml.safe_load((CONF / "backend" / f"{option}.yaml").read_text())
        node.pop("defaults")
        assert not list(keys(node, config.BACKENDS[option], option))
    assert options("backend") == sorted(config.BACKENDS)
    for option in options("model"):
        node = yaml.safe_load((CONF / "model" / f"{option}.yaml").read_text())
        schema = type(OmegaConf.to_object(composed(f"model={option}").model))
        node.pop("defaults")
        assert list(node) == ["model"]
        assert node["model"]["name"] == option
        assert not list(keys(node["model"], schema, option))


@pytest.mark.parametrize("key", ["foo", "scenario.foo", "model.architecture.foo", "tracking.foo", "backend.foo"])
def test_unknown_keys_are_refused_with_and_without_a_plus(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(f"{key}=1")
    for plus in ("+", "++"):
        with pytest.raises(UserError, match=r"there is no such key\. Allowed here: ") as caught:
            make_plan(composed(f"{plus}{key}=1"), tmp_path)
        assert caught.value.key == key


def test_engine_arguments_need_no_plus(tmp_path: Path) -> None:
    plan = make_plan(
        composed("backend.engine.max_num_seqs=7", "backend.engine.compilation_config={level: 0}"), tmp_path
    )
    assert plan.engine["max_num_seqs"] == 7
    assert plan.engine["compilation_config"] == {"level": 0}
    with pytest.raises(HydraException):
        composed("backend=simulated", "backend.engine.max_num_seqs=7")


@pytest.mark.parametrize("hw", options("hw"))
def test_hardware_profiles_are_complete_and_agree_with_themselves(hw: str) -> None:
    profile = OmegaConf.to_object(composed(f"hw={hw}").hw)
    assert isinstance(profile, config.Hardware)
    assert profile.source
    assert profile.memory_gib > 0
    if profile.device is config.Device.cpu:
        assert not profile.peak_tflops, "no processor is like another"
        return
    assert profile.gpu and profile.gpu.startswith("NVIDIA ")
    assert profile.bandwidth_gb_s and 100 < profile.bandwidth_gb_s < 20_000
    assert profile.power_w and 50 < profile.power_w <= 1500
    peak = profile.peak_tflops
    assert set(peak) <= {"fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"}
    assert peak["fp16"] == peak["bf16"]
    # Dense figures double with each halving of the type; the vendors' tables round by up to three per cent.
    assert peak["bf16"] == pytest.approx(2 * peak["tf32"], rel=0.03)
    assert peak["int8"] == pytest.approx(2 * peak["bf16"], rel=0.03)
    assert peak.get("fp8", peak["int8"]) == peak["int8"]
    assert peak.get("fp4", 2 * peak["int8"]) == pytest.approx(2 * peak["int8"], rel=0.03)
    assert peak["fp32"] < peak["tf32"]
    assert profile.nodes >= 1 and profile.gpus_per_node >= 1


MEMORY_GB = {"a30": 24, "l40s": 48, "a100": 80, "h100": 80, "h200": 141, "b200": 180}  # as sold


@pytest.mark.parametrize("hw", MEMORY_GB)
def test_memory_is_what_the_driver_reports_of_the_card_as_sold(hw: str) -> None:
    memory = composed(f"hw={hw}").hw.memory_gib
    assert 0.92 * MEMORY_GB[hw] <= memory * (1 << 30) / 1e9 <= 1.08 * MEMORY_GB[hw]


@pytest.mark.parametrize(
    ("several", "one", "nodes", "gpus"), [("2xa30", "a30", 2, 1), ("8xh100", "h100", 1, 8), ("2x8xh100", "h100", 2, 8)]
)
def test_profiles_of_several_differ_from_one_in_number_and_network_only(
    several: str, one: str, nodes: int, gpus: int
) -> None:
    many, single = (OmegaConf.to_container(composed(f"hw={name}").hw) for name in (several, one))
    assert isinstance(many, dict) and isinstance(single, dict)
    assert (many["nodes"], many["gpus_per_node"]) == (nodes, gpus)
    different = {key for key in many if many[key] != single[key]}
    assert different <= {"name", "nodes", "gpus_per_node", "network", "network_gbit_s"}
    assert many["network"]


@pytest.mark.parametrize("model", options("model"))
def test_parameter_counts_follow_from_the_shapes(model: str) -> None:
    decoder = composed(f"model={model}").model
    if OmegaConf.get_type(decoder) not in (config.Decoder, config.LanguageModel):
        assert "architecture" not in decoder  # nothing to count
        return
    shape = decoder.architecture
    attention = shape.hidden_size * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size
    assert shape.parameters == shape.layers * layer + 2 * shape.vocab_size * shape.hidden_size + shape.hidden_size


def test_benchmarks_names_and_targets() -> None:
    for model, name, samples in (("llama3_8b", "llama3_1-8b", 13368), ("llama3_8b_edge", "llama3_1-8b-edge", 5000)):
        it = composed(f"model={model}").model
        assert it.benchmark == name
        assert it.performance_samples == it.target.samples == samples
        # MLPerf's figures: 99 % of the reference's ROUGE, and 90 % to 110 % of its output length
        reference = {"llama3_8b": (38.7792, 15.9075, 24.4957, 35.793, 8167644),
                     "llama3_8b_edge": (39.06, 16.1147, 24.6375, 36.124, 3051113)}[model]  # fmt: skip
        target = it.target
        for name, of in zip(("rouge1", "rouge2", "rougeL", "rougeLsum"), reference, strict=False):
            assert target.minimum[name] == pytest.approx(0.99 * of, abs=1e-5)
        assert target.minimum["gen_len"] == pytest.approx(0.9 * reference[4], abs=2)
        assert target.maximum["gen_len"] == pytest.approx(1.1 * reference[4], abs=2)
