"""Sizing against figures worked out by hand, and what the plan fills in, keeps and refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mlperf_exp import cli
from mlperf_exp.config import (
    BACKENDS,
    Architecture,
    Config,
    Decoder,
    ExtractiveQa,
    Hardware,
    ImageClassifier,
    Images,
    LanguageModel,
    Prompts,
    Questions,
    Ray,
    ScenarioRules,
    Telemetry,
    Tracking,
    Training,
)
from mlperf_exp.credentials import has_credentials
from mlperf_exp.errors import UserError
from mlperf_exp.layout import gpus_each, layout
from mlperf_exp.memory import GIB, Fit, fit, weight_bytes
from mlperf_exp.messages import Plan
from mlperf_exp.plan import make_plan
from mlperf_exp.ranges import RANGES
from mlperf_exp.tiny_llama import ensure

LLAMA = Architecture(
    parameters=8030261248, layers=32, hidden_size=4096, intermediate_size=14336, heads=32, kv_heads=8, head_dim=128,
    vocab_size=128256, max_context=131072,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    cli.register()
    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        yield


def plan(*overrides: str) -> Plan:
    return make_plan(compose("config", list(overrides)), Path("run"))


def refusal(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        plan(*overrides)
    return caught.value


def sized(**changed: Any) -> Fit:
    values: dict[str, Any] = {"memory_gib": 23.5, "utilization": 0.92, "tensor_parallel": 1, "weight": 2.0, "kv": 2.0,
                              "batched_tokens": 8192, **changed}  # fmt: skip
    return fit(LLAMA, **values)


def test_llama_8b_on_24_gb_by_hand() -> None:
    it = sized()
    assert it.weight_bytes == 2 * 8030261248  # 14.96 GiB in bfloat16
    # keys and values: 2 x 32 layers x 8 heads x 128 x 2 bytes
    assert it.kv_bytes_per_token == 131072
    # 1 GiB, six hidden-sized and two feed-forward-sized tensors of 8192 tokens, logits of 1024 sequences
    assert it.work_bytes == (1 << 30) + 2 * 8192 * (6 * 4096 + 2 * 14336) + 4 * 128256 * 1024
    assert it.usable_bytes == 23.5 * 0.92 * (1 << 30)
    left = it.usable_bytes - it.weight_bytes - it.work_bytes
    assert it.kv_tokens == math.floor(left / 131072)
    assert 25_000 < it.kv_tokens < 45_000


def test_fp8_weights_and_cache_by_hand() -> None:
    outer = 2 * 128256 * 4096  # embedding and output layer stay at two bytes
    assert weight_bytes(LLAMA, 1.0) == (8030261248 - outer) + 2 * outer
    assert weight_bytes(LLAMA, 4.0) == 4 * 8030261248
    assert sized(kv=1.0).kv_bytes_per_token == 65536
    assert sized(weight=1.0, kv=1.0).kv_tokens > 2 * sized().kv_tokens


def test_tensor_parallel_by_hand() -> None:
    two = sized(tensor_parallel=2)
    assert two.weight_bytes == 8030261248
    assert two.kv_bytes_per_token == 65536
    # eight key-value heads over sixteen cards: each card keeps one, none less
    assert sized(tensor_parallel=16).kv_bytes_per_token == 2 * 32 * 1 * 128 * 2


amounts = st.floats(1.0, 400.0)


@given(amounts, amounts, st.floats(0.05, 1.0), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_more_memory_never_holds_less(a: float, b: float, share: float, degree: int, weight: float) -> None:
    less, more = sorted((a, b))
    of = {"utilization": share, "tensor_parallel": degree, "weight": weight}
    assert sized(memory_gib=less, **of).kv_tokens <= sized(memory_gib=more, **of).kv_tokens


@given(amounts, st.floats(0.05, 1.0), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1.0, 2.0]), st.integers(1, 65536))
def test_what_is_said_to_fit_fits(memory: float, share: float, degree: int, kv: float, batched: int) -> None:
    it = sized(memory_gib=memory, utilization=share, tensor_parallel=degree, kv=kv, batched_tokens=batched)
    taken = it.weight_bytes + it.work_bytes + it.kv_tokens * it.kv_bytes_per_token
    assert it.kv_tokens == 0 or taken <= memory * share * GIB


_memory = st.floats(14.0, 200.0)


@given(_memory, _memory)
def test_more_memory_never_plans_fewer_sequences(a: float, b: float) -> None:
    cfg = _A30()
    counts = []
    for memory in sorted((a, b)):
        cfg.hw.memory_gib = memory
        try:
            counts.append(make_plan(cfg, Path("run")).engine["max_num_seqs"])
        except UserError:
            counts.append(0)
    assert counts[0] <= counts[1] <= 1024


_cached: list[Any] = []


def _A30() -> Any:
    if not _cached:
        _cached.append(compose("config", ["hw=a30"]))
    return _cached[0].copy()


def why(it: Plan, key: str) -> str:
    (derived,) = [d for d in it.derived if d.key == key]
    return derived.why


def test_an_a30_gets_settings_that_fit_and_says_why() -> None:
    it = plan("hw=a30", "scenario=server")
    sequences, step = it.engine["max_num_seqs"], it.engine["max_num_batched_tokens"]
    assert sequences % 8 == 0
    mean = 785 + 64 + 8  # half a page of 16
    assert (sequences * mean) <= sized(batched_tokens=step).kv_tokens < (sequences + 8) * mean
    assert it.engine["gpu_memory_utilization"] == 0.92
    assert it.engine["max_model_len"] == 2668
    assert "tensor_parallel_size" not in it.engine
    said = why(it, "backend.engine.max_num_seqs")
    assert f"{sized(batched_tokens=step).kv_tokens:,} tokens" in said
    assert "15.0 GiB of weights" in said and "21.6 GiB" in said
    assert all(d.why for d in it.derived)
    bounds = {"scenario.ttft_ms", "scenario.tpot_ms"}
    assert {f"backend.engine.{key}" for key in it.engine} | bounds == {d.key for d in it.derived}


FP8 = ("backend.engine.quantization=fp8", "backend.engine.kv_cache_dtype=fp8")


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        (("hw=a30",), 384),
        (("hw=a30", "scenario=server"), 384),
        (("hw=a30", "scenario=interactive"), 384),  # loads share an engine
        (("hw=a30", "backend.engine.max_num_seqs=400"), 400),  # one token each at least
        (("hw=a100", *FP8), 768),  # no fp8 products: the peak is bf16's
        (("hw=a100", "backend.engine.dtype=half"), 768),
        (("hw=l40s", *FP8), 1920),
        (("hw=b200", *FP8), 4096),
        (("hw=8xh100", *FP8), 4096),
        (("hw=8xh100",), 2560),
        (("hw=a30", "model=llama3_tiny"), 2048),
    ],
)
def test_a_full_step_keeps_the_time_that_a_servers_token_may_take(words: tuple[str, ...], tokens: int) -> None:
    it = plan(*words)
    assert it.engine["max_num_batched_tokens"] == tokens
    assert it.engine["max_num_seqs"] <= tokens  # vLLM refuses more
    said = why(it, "backend.engine.max_num_batched_tokens")
    if tokens in (2048, 4096):
        assert "a card of this size" in said
    else:
        peaks = it.config.hw.peak_tflops
        peak = (peaks.get("fp8") if "quantization" in it.engine else None) or peaks["bf16"] or 0.0
        took = 1e3 * tokens * 2 * 6_979_588_096 / (0.42 * peak * 1e12)
        assert f"about {took:.0f} ms at 42% of {peak:g} TFLOP/s, of the 100 ms" in said


@pytest.mark.parametrize(
    ("words", "tokens", "better"),
    [
        (("hw=h200", "scenario=server", *FP8), 4096, None),
        (("hw=h200", "scenario=interactive", *FP8), 1536, None),  # what was the best of those tried on one
        (("hw=h200", "scenario=server"), 4096, 2560),  # half the peak
        (("hw=h200", "scenario=interactive"), 1536, 768),
        (("hw=b200", "scenario=interactive", *FP8), 4096, 3584),
        (("hw=a30", "scenario=interactive"), 384, 256),
        (("hw=a30", "scenario=interactive", "backend.engine.max_num_batched_tokens=256"), 256, None),
        (("hw=a30", "scenario=server"), 384, None),
        (("hw=a30",), 384, None),
    ],
)
def test_steps_that_are_too_long_for_the_load_are_told(words: tuple[str, ...], tokens: int, better: int | None) -> None:
    it = plan(*words)
    assert it.engine["max_num_batched_tokens"] == tokens
    told = [warning for warning in it.warnings if "A full step of" in warning]
    assert len(told) == (better is not None)
    if better is not None:
        assert f"A full step of {tokens:,} tokens" in told[0]
        assert f"backend.engine.max_num_batched_tokens={better} keeps it better" in told[0]


def test_fp8_fits_more_on_the_same_card() -> None:
    plain = plan("hw=a30").engine["max_num_seqs"]
    small = plan("hw=a30", "backend.engine.quantization=fp8", "backend.engine.kv_cache_dtype=fp8").engine
    assert small["max_num_seqs"] > 2 * plain
    assert small["quantization"] == small["kv_cache_dtype"] == "fp8"


@pytest.mark.parametrize(("memory", "says"), [(15.7, "for 0 tokens"), (17.5, "for 0 tokens"), (17.8, "tokens")])
def test_too_small_a_card_is_refused_with_the_figures(memory: float, says: str) -> None:
    error = refusal("hw=a30", f"hw.memory_gib={memory}")
    assert error.key == "hw"
    assert "llama3_8b does not fit on a30" in error.problem
    assert f"{memory * 0.92:.1f} GiB a GPU" in error.problem and "weights take 15.0 GiB" in error.problem
    assert says in error.problem and "2,668" in error.problem
    assert "backend.engine.quantization=fp8" in error.remedy
    plan("hw=a30", f"hw.memory_gib={memory}", "backend.engine.quantization=fp8")  # the remedy holds


@pytest.mark.parametrize(
    ("words", "degree", "replicas"),
    [
        ("hw=h100", None, 1),
        ("hw=cpu", None, 1),
        ("hw=8xh100", 1, 8),  # several engines answer more than one over as many cards
        ("hw=8xh100 backend.replicas=1", 8, 1),
        ("hw=8xh100 backend.replicas=2", 4, 2),
        ("hw=8xh100 backend.replicas=3", 2, 3),
        ("hw=8xh100 backend.engine.tensor_parallel_size=2", 2, 4),
        ("hw=8xh100 hw.memory_gib=16", 2, 4),  # the weights alone fill one card
        ("hw=8xh100 model=llama3_tiny", 1, 8),
        ("hw=8xh100 backend.engine.data_parallel_size=4", 1, 2),
        ("hw=2x8xh100 ray.address=auto", 1, 16),
        ("hw=2x8xh100 ray.address=auto backend.engine.tensor_parallel_size=8", 8, 2),
        ("hw=2xa30 ray.address=auto", None, 2),
        ("hw=2xa30 ray.address=auto backend.replicas=1", None, 1),
    ],
)
def test_replicas_and_parallelism_by_profile(words: str, degree: int | None, replicas: int) -> None:
    it = plan(*words.split())
    assert it.engine.get("tensor_parallel_size") == degree
    assert it.config.backend.replicas == replicas
    where = layout(it)
    assert (where.replicas, where.gpus) == (replicas, 0 if "cpu" in words else gpus_each(it.config, it.engine))
    assert max(where.on_node) * where.gpus <= it.config.hw.gpus_per_node


def test_workers_of_a_replica_are_not_asked_of_ray() -> None:
    """vLLM's own choice inside an actor, which already holds the GPUs."""
    assert plan("hw=8xh100", "backend.replicas=4").engine["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in plan("hw=8xh100", "backend.replicas=8").engine
    assert "distributed_executor_backend" not in plan("hw=8xh100", "backend.replicas=1").engine
    asked = plan("hw=8xh100", "backend.replicas=4", "+backend.engine.distributed_executor_backend=ray")
    assert asked.engine["distributed_executor_backend"] == "ray"


def test_replicas_of_other_backends_and_where_they_go() -> None:
    assert plan("hw=8xh100", "model=resnet50").config.backend.replicas == 8
    assert plan("hw=8xh100", "backend=simulated").config.backend.replicas == 1
    many = layout(plan("hw=2x8xh100", "backend=simulated", "backend.replicas=5", "ray.address=auto"))
    assert (many.on_node, many.gpus) == ((3, 2), 0)
    assert [many.node_of(replica) for replica in range(5)] == [0, 0, 0, 1, 1]
    assert layout(plan("hw=2x8xh100", "backend=simulated", "backend.replicas=5")).on_node == (5,)


def test_too_many_replicas_and_nodes_without_a_cluster_are_refused() -> None:
    error = refusal("hw=8xh100", "backend.replicas=9")
    assert (error.key, error.remedy) == ("backend.replicas", "Give at most 8")
    error = refusal("hw=8xh100", "backend.replicas=3", "backend.engine.tensor_parallel_size=4")
    assert (error.key, error.remedy) == ("backend.replicas", "Give at most 2")
    error = refusal("hw=2xa30")
    assert error.key == "hw" and "ray.address=auto" in error.remedy
    assert refusal("hw=2xa30", "ray.address=ray://me:secret@head:10001").key == "ray.address"
    assert refusal("backend.routing=fastest").key == "backend.routing"


def test_parallelism_leaves_room_for_other_kinds() -> None:
    error = refusal("hw=8xh100", "backend.engine.data_parallel_size=4", "backend.engine.tensor_parallel_size=4")
    assert error.key == "backend.engine.tensor_parallel_size"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("tensor_parallel_size=0", "tensor_parallel_size"),
        ("tensor_parallel_size=3", "tensor_parallel_size"),
        ("tensor_parallel_size=16", "tensor_parallel_size"),
        ("tensor_parallel_size=two", "tensor_parallel_size"),
        ("max_model_len=auto", "max_model_len"),
        ("max_model_len=128", "max_model_len"),
        ("max_num_batched_tokens=-1", "max_num_batched_tokens"),
        ("max_num_seqs=true", "max_num_seqs"),
        ("block_size=0", "block_size"),
        ("gpu_memory_utilization=1.5", "gpu_memory_utilization"),
        ("gpu_memory_utilization=most", "gpu_memory_utilization"),
        ("dtype=float7", "dtype"),
    ],
)
def test_engine_arguments_that_the_plan_counts_with_are_checked(given: str, key: str) -> None:
    error = refusal("hw=8xh100", f"backend.engine.{given}")
    assert error.key == f"backend.engine.{key}"
    assert error.remedy.startswith(("Give ", "Use "))


@pytest.mark.parametrize(("dtype", "weights"), [("half", "15.0"), ("auto", "15.0"), ("float", "29.9")])
def test_vllms_other_names_of_types(dtype: str, weights: str) -> None:
    it = plan("hw=h100", "scenario=server", f"backend.engine.dtype={dtype}")
    assert it.engine["dtype"] == dtype
    assert f"{weights} GiB of weights" in why(it, "backend.engine.max_num_seqs")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_num_seqs": st.integers(1, 4096),
            "max_model_len": st.integers(129, 4096),
            "max_num_batched_tokens": st.integers(1, 16384),
            "gpu_memory_utilization": st.floats(0.91, 1.0),
            "enable_prefix_caching": st.booleans(),
            "seed": st.integers(0, 9),
            "dtype": st.sampled_from(["auto", "bfloat16", "half"]),
            "stream_interval": st.integers(1, 128),
            "some_future_argument": st.text(max_size=5),
        },
    )
)
def test_what_the_user_gives_the_engine_wins(engine: dict[str, Any]) -> None:
    cfg = _A30()
    cfg.backend.engine = engine
    it = make_plan(cfg, Path("run"))
    assert {key: it.engine[key] for key in engine} == engine
    assert not {f"backend.engine.{key}" for key in engine} & {d.key for d in it.derived}


def test_mlperfs_rules_are_on_by_default() -> None:
    it = plan("hw=h100")
    assert (it.config.model.max_new_tokens, it.config.model.min_new_tokens) == (128, 1)
    assert it.engine["enable_prefix_caching"] is False
    assert it.engine["skip_tokenizer_init"] is True  # token ids in, token ids out
    assert it.engine["generation_config"] == "vllm"  # greedy, not the checkpoint's sampling
    assert "speculative_config" not in it.engine
    assert it.config.scenario.min_duration_s == 600
    assert not it.warnings


def test_a_context_shorter_than_the_longest_sample_is_warned_of() -> None:
    (warning,) = plan("hw=a30", "backend.engine.max_model_len=2048").warnings
    assert "2048" in warning and "2668" in warning
    assert refusal("model.max_prompt_tokens=131000").key == "model.max_prompt_tokens"


def test_dummy_weights_load_nothing_and_measure_no_accuracy() -> None:
    it = plan("hw=a30", "model.weights=dummy")
    assert it.engine["load_format"] == "dummy"
    assert it.modes == ("performance",)
    assert refusal("hw=a30", "model.weights=dummy", "scenario.mode=accuracy").key == "scenario.mode"
    assert refusal("model=llama3_tiny", "model.weights=dummy").key == "model.weights"


def _wrong() -> Iterator[tuple[str, str, float]]:
    """(backend, key, value): a value below and above each range, and for real numbers those that are none."""
    groups = {"hw": Hardware, "tracking": Tracking, "telemetry": Telemetry, "ray": Ray}
    kinds: dict[str, list[tuple[str, Any]]] = {
        "scenario": [("vllm", ScenarioRules), ("lightning", Training)],
        "backend": list(BACKENDS.items()),
        "model": [
            ("vllm", Decoder),
            ("torch", ImageClassifier),
            ("packed", ExtractiveQa),
            ("text", LanguageModel),
        ],
        "dataset": [("vllm", Prompts), ("torch", Images), ("packed", Questions)],
    }
    for key, (least, most) in RANGES.items():
        group, _, name = key.rpartition(".")
        for backend, schema in kinds.get(group, [("vllm", groups.get(group, Config))]):
            annotations = {f.name: str(f.type) for f in fields(schema)}
            if name not in annotations:
                continue
            yield backend, key, least - 1
            if most != math.inf:
                yield backend, key, most + 1
            if "float" in annotations[name]:
                yield from ((backend, key, value) for value in (math.nan, math.inf))


@pytest.mark.parametrize(("backend", "key", "value"), list(_wrong()))
def test_numbers_out_of_range_are_refused_by_their_key(backend: str, key: str, value: float) -> None:
    cfg = _configs(backend)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError) as caught:
        make_plan(cfg, Path("run"))
    assert caught.value.key == key
    assert "Give a number " in caught.value.remedy


def test_every_range_belongs_to_a_key() -> None:
    assert {key for _, key, _ in _wrong()} == set(RANGES)


_by_backend: dict[str, Any] = {}


def _configs(backend: str) -> Any:
    if backend not in _by_backend:
        words = {"openai": ["backend=openai", "backend.urls=[http://h]"], "torch": ["model=resnet50"],
                 "lightning": ["model=resnet50", "scenario=train"],
                 "packed": ["model=bert_large"],
                 "text": ["model=llama3_8b_pretrain", "scenario=train", "hw=8xh100"]}  # fmt: skip
        _by_backend[backend] = compose("config", ["hw=h100", *words.get(backend, [f"backend={backend}"])])
    return _by_backend[backend].copy()


def test_a_load_beyond_all_memory_is_refused() -> None:
    assert refusal("scenario.target_qps=1e6", "scenario.min_duration_s=3600").key == "scenario.target_qps"
    assert refusal("scenario.target_qps=null").key == "scenario.target_qps"
    assert plan("scenario=single_stream").config.scenario.target_qps is None


def test_missing_values_are_named() -> None:
    assert refusal("backend=openai").key == "backend.urls"
    assert refusal("backend=openai", "backend.urls=[]").key == "backend.urls"


@given(st.text(alphabet="abc:/@?#5.[]", max_size=12))
def test_a_user_name_before_a_host_is_always_seen(password: str) -> None:
    assert has_credentials(f"http://me:x{password}@host/")


def test_the_tiny_models_shapes_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    from safetensors import safe_open

    shape = plan("model=llama3_tiny").config.model.architecture
    folder = ensure(tmp_path / "tiny")
    built = json.loads((folder / "config.json").read_text())
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
             "max_context": "max_position_embeddings"}  # fmt: skip
    for name in ("hidden_size", "intermediate_size", "head_dim", "vocab_size", "rope_theta", "rms_norm_eps",
                 "bos_token_id", *names):  # fmt: skip
        assert getattr(shape, name) == built[names.get(name, name)], name
    assert shape.eos_token_ids == [built["eos_token_id"]]
    with safe_open(str(folder / "model.safetensors"), "np") as file:
        assert shape.parameters == sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
