"""Which key belongs to which hash: every one of the schema, held to what the plan really makes of it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_exp import cli
from mlperf_exp.config import (
    BACKENDS,
    DATASETS,
    MODELS,
    Config,
    ExtractiveQa,
    ImageClassifier,
    Images,
    LanguageModel,
    LightningBackend,
    Questions,
    Scenario,
    Tokens,
    Training,
)
from mlperf_exp.errors import UserError
from mlperf_exp.hashes import PARTS, Part, data_hash, engine_hash, leaves, plan_hash, weights_identity
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan, Sample
from mlperf_exp.plan import make_plan
from mlperf_exp.tiny_llama import ensure

INPUTS = Inputs(None, [Sample((1, 2), "a")], None)


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*overrides: str, folder: str = "run") -> Plan:
    return make_plan(compose("config", list(overrides)), Path(folder))


@functools.cache
def configs() -> list[Config]:
    """One configuration for each backend, so that every key of the schema is in one of them."""
    base, made = plan("hw=h100").config, []
    for name, schema in BACKENDS.items():
        backend = schema(**({"urls": ["http://a:1"]} if name == "openai" else {}))
        made.append(replace(base, backend=backend))
    classifier = ImageClassifier(name="c", path="c", network="resnet50")
    made.append(replace(base, model=classifier, dataset=Images(name="i")))
    encoder = ExtractiveQa(name="e", path="e", layers=1, hidden_size=1, intermediate_size=1, heads=1)
    made.append(replace(base, model=encoder, dataset=Questions(name="q")))
    training = replace(base, scenario=Training(name=Scenario.train), backend=LightningBackend())
    made.append(replace(training, model=classifier))
    made.append(replace(training, model=LanguageModel(name="l"), dataset=Tokens(name="t")))
    return made


def schema_keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key that the dataclasses have, down to the last, without those beneath a classified one."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, inner = prefix + field.name, hints[field.name]
        if key in PARTS or not is_dataclass(inner):
            yield key
        else:
            yield from schema_keys(inner, f"{key}.")


def all_keys() -> set[str]:
    groups = {"backend": BACKENDS, "model": MODELS, "dataset": DATASETS}
    keys = set(schema_keys(Config)) - set(groups)
    return keys.union(*(schema_keys(kind, f"{name}.") for name, kinds in groups.items() for kind in kinds.values()))


def test_every_key_of_the_schema_is_classified_and_no_other() -> None:
    assert all_keys() == set(PARTS)


def changed(value: Any, draw: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return draw(st.sampled_from([*(other for other in type(value) if other is not value), "another"]))
    if isinstance(value, int | float):
        return draw(st.integers(1, 10**6).filter(lambda new: new != value))
    if isinstance(value, str):
        return value + draw(st.text("abc/.", min_size=1, max_size=3))
    if isinstance(value, list):
        return [*value, "another"]
    if isinstance(value, dict):
        return {**value, "another": draw(st.integers(1, 9))}
    if value is None:
        return draw(st.integers(1, 9))
    name = draw(st.sampled_from([field.name for field in fields(value)]))
    return replace(value, **{name: changed(getattr(value, name), draw)})


def with_value(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    inner = with_value(getattr(config, name), rest, value) if rest else value
    return replace(config, **{name: inner})


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_each_key_changes_the_hashes_of_its_part_and_no_other(data: Any) -> None:
    config = data.draw(st.sampled_from(configs()))
    key, value = data.draw(st.sampled_from(list(leaves(config))))
    before = Plan(config, Path("run"), {"max_num_seqs": 8}, ("performance",))
    after = replace(before, config=with_value(config, key, changed(value, data.draw)))
    assert (engine_hash(after, INPUTS) != engine_hash(before, INPUTS)) == (PARTS[key] is Part.engine), key
    assert (plan_hash(after) != plan_hash(before)) == (PARTS[key] is not Part.record), key


LOADS = [
    ("scenario=server", "scenario=interactive"),
    ("scenario=server", "scenario=offline"),
    ("scenario.target_qps=3", "scenario.target_qps=4"),
    ("scenario.min_duration_s=3",),
    ("scenario.min_query_count=7",),
    ("scenario.mode=performance", "scenario.mode=both"),
    ("dataset.samples=100",),
    ("division=open",),
    ("name=another", "tracking.enabled=false", "progress=false"),
]


@pytest.mark.parametrize("hw", ["cpu", "a30", "8xh100"])
@pytest.mark.parametrize("words", LOADS, ids=lambda words: words[0])
def test_what_the_plan_derives_for_the_engine_does_not_follow_the_load(hw: str, words: tuple[str, ...]) -> None:
    """Through the whole plan: a load parameter that crept into vLLM's arguments would start another engine."""
    hashes = {engine_hash(plan(f"hw={hw}", "backend=vllm", *some), INPUTS) for some in ((), *((w,) for w in words))}
    assert len(hashes) == 1


def test_engine_arguments_and_profiles_change_the_engine() -> None:
    words = [(), ("backend.engine.max_num_seqs=7",), ("backend.engine.quantization=fp8",), ("model.dtype=float16",),
             ("hw=h200",), ("hw=8xh100",), ("model.weights=dummy",), ("seed=2",)]  # fmt: skip
    hashes = {engine_hash(plan("hw=h100", "backend=vllm", *some), INPUTS) for some in words}
    assert len(hashes) == len(words)


def test_the_order_of_engine_arguments_and_the_folder_do_not_count() -> None:
    one = plan("hw=h100", "backend.engine.max_num_seqs=7", "backend.engine.block_size=16", folder="one")
    other = plan("hw=h100", "backend.engine.block_size=16", "backend.engine.max_num_seqs=7", folder="other")
    assert engine_hash(one, INPUTS) == engine_hash(other, INPUTS)
    assert plan_hash(one) == plan_hash(other)


def test_the_data_set_is_known_by_its_content() -> None:
    sample = Sample((1, 2, 3), "text")
    others = [[], [sample, sample], [Sample((1, 2), "text")], [Sample((1, 2, 3), "Text")], [Sample((1, 2, 4), "text")]]
    assert data_hash([sample]) == data_hash([Sample((1, 2, 3), "text")])
    assert len({data_hash([sample]), *(data_hash(other) for other in others)}) == 6
    by_hand = b"3 4\n" + bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]) + b"text"
    assert data_hash([sample]) == hashlib.sha256(by_hand).hexdigest()[:16]  # the same in every process


def test_other_weights_are_another_engine(tmp_path: Path) -> None:
    source = ensure(Path("outputs") / "models" / "llama3_tiny")
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    it = plan("model=llama3_tiny", "hw=cpu")
    same = engine_hash(it, Inputs(tmp_path, [], None))
    assert same == engine_hash(it, Inputs(source, [], None))
    weights = next(tmp_path.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert engine_hash(it, Inputs(tmp_path, [], None)) != same
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    assert weights_identity(tmp_path)["config.json"] != weights_identity(source)["config.json"]


def test_a_large_file_is_read_in_blocks_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    size = 200 << 20
    seen = set()
    for at in (None, 0, size - 1):
        with path.open("wb") as file:
            file.truncate(size)
            if at is not None:
                file.seek(at)
                file.write(b"x")
        seen.add(weights_identity(tmp_path)["model.safetensors"])
    assert len(seen) == 3


def test_weights_that_cannot_be_read_are_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"model.path: .*gone|model.safetensors"):
        weights_identity(tmp_path)
