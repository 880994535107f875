"""Config -> Plan: resolves, checks that the run can fit and may run, and refuses what cannot. Pure: reads no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlperf_exp import batches, layout, steps
from mlperf_exp.benchmarks import BENCHMARKS, bounds_ms
from mlperf_exp.compliance import rules as compliance
from mlperf_exp.config import (
    READS,
    RUNS,
    Config,
    Device,
    LightningBackend,
    Mode,
    OpenaiBackend,
    Replicated,
    Scenario,
    Search,
    SimulatedBackend,
    TorchBackend,
    Training,
    VllmBackend,
    Weights,
)
from mlperf_exp.credentials import has_credentials
from mlperf_exp.errors import UserError
from mlperf_exp.memory import BYTES, GIB, Fit, fit
from mlperf_exp.messages import Derived, Plan
from mlperf_exp.network import NETWORKS
from mlperf_exp.ranges import MAX_QUERIES, check_numbers
from mlperf_exp.sut.routing import policy

MAX_QPS = 1e6
_LARGE_GIB = 70.0  # vLLM's own line between small and large cards (EngineArgs.get_batch_defaults)
EDGE_SCENARIOS = (Scenario.offline, Scenario.single_stream)


_COUNTS = (  # engine arguments that the plan counts with
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size",
    "data_parallel_size", "block_size",
)  # fmt: skip
_PAGE = 16  # tokens of KV cache that vLLM gives out at a time
_AMPLE = 32  # sequences at a time, with which a card is busy
_LARGER = "Use a larger profile, more GPUs (backend.engine.tensor_parallel_size) or backend.engine.quantization=fp8"
_ALIASES = {"half": "float16", "float": "float32"}  # vLLM's other names


def make_plan(cfg: DictConfig, run_dir: Path) -> Plan:
    """Check a composed configuration and derive what it leaves open.

    Raises:
        UserError: naming the key, what is wrong and the remedy.
    """
    config = typed(cfg)
    _check_kinds(config)
    check_numbers(config)
    _check_search(config)
    _check_shared_names(config)
    if isinstance(config.scenario, Training):
        return _training(config, run_dir)
    _check_load(config)
    _check_names(config)
    derived: list[Derived] = []
    warnings: list[str] = []
    _bounds(config, derived)
    engine: dict[str, Any] = {}
    if isinstance(config.backend, VllmBackend):
        engine = _engine(config, derived, warnings)
    if isinstance(config.backend, TorchBackend):
        engine = batches.engine(config, derived)
    if isinstance(config.backend, OpenaiBackend):
        if not config.backend.urls:
            raise UserError("backend.urls", "the list is empty", "Give at least one: backend.urls=[http://host:8000]")
        for url in config.backend.urls:
            _no_credentials("backend.urls", url, f"Put the key into ${config.backend.api_key_env}")
    if isinstance(config.backend, Replicated):
        layout.settle(config, engine, derived)
        if config.backend.replicas == 1 and config.hw.nodes > 1 and not isinstance(config.backend, SimulatedBackend):
            warnings.append(f"backend.replicas=1 uses one of the {config.hw.nodes} nodes of {config.hw.name}.")
    modes = _modes(config, derived)
    return Plan(
        config=config,
        run_dir=run_dir.absolute(),
        engine=engine,
        modes=modes,
        compliance=compliance.planned(config, modes),
        derived=tuple(derived),
        warnings=tuple(warnings),
    )


def _training(config: Config, run_dir: Path) -> Plan:
    """The plan of a training run."""
    from mlperf_exp.train.planning import plan_training

    derived: list[Derived] = []
    engine = plan_training(config, derived)
    return Plan(config=config, run_dir=run_dir.absolute(), engine=engine, modes=("train",), derived=tuple(derived))


def typed(cfg: DictConfig) -> Config:
    """The configuration as its dataclasses; missing mandatory values are refused by name."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(key, "must be given", f"Add it to the command: {key}=...")
    for key, allowed in _unknown(cfg):
        raise UserError(key, "there is no such key", f"Allowed here: {', '.join(allowed)}")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def _unknown(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys of no schema, which a plus sign on the command line can add, each with what is allowed in its place."""
    owner = OmegaConf.get_type(cfg)
    allowed = [f.name for f in fields(owner)] if is_dataclass(owner) else None
    for name in cfg:
        key = f"{prefix}{name!s}"
        if allowed is not None and name not in allowed:
            yield key, allowed
        elif not OmegaConf.is_missing(cfg, name) and isinstance(cfg[name], DictConfig):
            yield from _unknown(cfg[name], f"{key}.")


def _check_kinds(config: Config) -> None:
    """A model goes with data of its kind and with the backends that run its kind."""
    model, dataset, backend = config.model, config.dataset, config.backend
    if not isinstance(dataset, READS[type(model)]):
        wanted = READS[type(model)].__name__.lower()
        raise UserError(
            "dataset",
            f"{model.name} reads {wanted}, and {dataset.name} holds {type(dataset).__name__.lower()}",
            "Leave out dataset= for the model's own, or choose another of its kind",
        )
    if not isinstance(model, RUNS[type(backend)]):
        fitting = [kind.name for kind, kinds in RUNS.items() if type(model) in kinds]
        raise UserError("backend", f"{backend.name} does not run {model.name}", f"Allowed: {', '.join(fitting)}")
    if isinstance(config.scenario, Training) is not isinstance(backend, LightningBackend):
        does = "trains" if isinstance(backend, LightningBackend) else "serves"
        remedy = "Leave out backend= for the scenario's own, or choose another scenario"
        raise UserError("backend", f"{backend.name} {does}, and not in scenario={config.scenario.name.name}", remedy)


def _bounds(config: Config, derived: list[Derived]) -> None:
    """MLPerf's bounds where the user set none, so that everything that follows finds them in one place."""
    rules = config.scenario
    for name, bound in bounds_ms(config.model.benchmark, rules.name).items():
        if getattr(rules, f"{name}_ms") is None:
            setattr(rules, f"{name}_ms", bound)
            derived.append(Derived(f"scenario.{name}_ms", bound, f"MLPerf's bound for {config.model.benchmark}"))


def _check_load(config: Config) -> None:
    rules = config.scenario
    if rules.target_qps is not None and not 0 < rules.target_qps <= MAX_QPS:
        raise UserError(
            "scenario.target_qps",
            f"{rules.target_qps:g} is no rate that can be offered",
            f"Give queries per second above 0 and at most {MAX_QPS:,.0f}",
        )
    if rules.target_qps is None and rules.name not in (Scenario.single_stream, Scenario.multi_stream):
        raise UserError("scenario.target_qps", "is needed in this scenario", "Give the queries per second to offer")
    duration_queries = (rules.target_qps or 0) * rules.min_duration_s
    if duration_queries > MAX_QUERIES:
        raise UserError(
            "scenario.target_qps",
            f"{rules.target_qps:g} for {rules.min_duration_s:g} s makes {duration_queries:,.0f} queries",
            f"Lower it, or scenario.min_duration_s, to at most {MAX_QUERIES:,} queries",
        )


def _check_search(config: Config) -> None:
    rules = config.scenario
    if isinstance(rules, Training) and config.repeats > 1:
        remedy = "Run it with several seeds: python -m mlperf_exp -m seed=1,2,3,4,5 ..."
        raise UserError("repeats", "measures on one engine start, and training has none", remedy)
    if config.search is not Search.off and config.repeats > 1:
        raise UserError("repeats", "a search runs its load once", "Search first, then repeat at the rate that it found")
    if config.search is Search.off:
        return
    if rules.name not in (Scenario.server, Scenario.interactive):
        raise UserError(
            "search",
            f"{rules.name.name} has no rate of arrivals to look for",
            "Use scenario=server or scenario=interactive; for the highest throughput, sweep engine settings with -m",
        )
    if rules.mode is Mode.accuracy:
        raise UserError("search", "looks for a rate, and accuracy has none", "Use scenario.mode=both or performance")


def _check_shared_names(config: Config) -> None:
    _no_credentials("tracking.uri", config.tracking.uri, "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if config.hw.network is not None and config.hw.network not in NETWORKS:
        raise UserError(
            "hw.network", f"'{config.hw.network}' is not known", f"Give one of {', '.join(NETWORKS)}, or null"
        )


def _check_names(config: Config) -> None:
    known = BENCHMARKS.get(config.model.benchmark or "")
    if config.model.benchmark is not None and (known is None or not isinstance(config.model, known.kind)):
        fitting = [name for name, it in BENCHMARKS.items() if isinstance(config.model, it.kind)]
        raise UserError(
            "model.benchmark",
            f"LoadGen has no settings of '{config.model.benchmark}' for it, and would take others without a word",
            f"Give one of {', '.join(fitting)}, or null for a model of no benchmark",
        )
    if known is not None and known.edge and config.scenario.name not in EDGE_SCENARIOS:
        raise UserError(
            "scenario",
            f"{config.scenario.name.name} is not run for {config.model.name}, an edge benchmark",
            "Use scenario=offline or scenario=single_stream, or model=llama3_8b",
        )
    if isinstance(config.backend, Replicated | OpenaiBackend):
        policy.check(config.backend.routing)
    if config.ray.address is not None:
        _no_credentials("ray.address", config.ray.address, "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN")
    if isinstance(config.backend, SimulatedBackend | OpenaiBackend):
        return
    if config.hw.nodes > 1 and config.ray.address is None:
        raise UserError(
            "hw",
            f"{config.hw.name} spans {config.hw.nodes} nodes, and no Ray cluster over them is named",
            "Start Ray on each node and give ray.address=auto, serve the model on each and use backend=openai "
            "backend.urls=[...], or choose a profile of one node",
        )
    if config.model.path.startswith("builtin:") and config.model.weights is Weights.dummy:
        raise UserError("model.weights", f"{config.model.name} makes its own weights", "Leave out model.weights=dummy")


def _no_credentials(key: str, url: str, remedy: str) -> None:
    if has_credentials(url):
        raise UserError(key, "must not hold a user name or password: it is recorded with the run", remedy)


def _modes(config: Config, derived: list[Derived]) -> tuple[str, ...]:
    wanted = config.scenario.mode
    scored = config.model.weights is not Weights.dummy and not config.dataset.synthetic
    scored = scored and not isinstance(config.backend, SimulatedBackend)
    if not scored and wanted is Mode.accuracy:
        raise UserError(
            "scenario.mode",
            "accuracy cannot be measured with dummy weights, synthetic data or a simulated system",
            "Use scenario.mode=performance, or real weights and a data set with references",
        )
    if not scored and wanted is Mode.both:
        why = "dummy weights, synthetic data and a simulated system have no accuracy; the run cannot be valid"
        derived.append(Derived("scenario.mode", "performance", why))
        wanted = Mode.performance
    return ("performance", "accuracy") if wanted is Mode.both else (wanted.value,)


def _engine(config: Config, derived: list[Derived], warnings: list[str]) -> dict[str, Any]:
    """vLLM's arguments: the user's, MLPerf's rules, and what the hardware profile says about the rest."""
    model, given = config.model, dict(config.backend.engine)

    def fill(key: str, value: Any, why: str) -> None:
        if key not in given:
            given[key] = value
            derived.append(Derived(f"backend.engine.{key}", value, why))

    for key in _COUNTS:
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise UserError(f"backend.engine.{key}", f"'{given[key]}' is not a count", "Give a whole number above 0")
    share = given.get("gpu_memory_utilization", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError("backend.engine.gpu_memory_utilization", f"'{share}' is not a share", "Give a number up to 1")
    longest = model.max_prompt_tokens + model.max_new_tokens
    if longest > model.architecture.max_context:
        raise UserError(
            "model.max_prompt_tokens",
            f"{longest} tokens of prompt and output exceed the model's context of {model.architecture.max_context}",
            f"Give at most {model.architecture.max_context - model.max_new_tokens}",
        )
    fill("dtype", model.dtype, "the model's own type")
    fill("seed", config.seed, "the run's seed")
    fill("max_model_len", longest, "the longest prompt and its output")
    fill("enable_prefix_caching", False, "MLPerf allows no caching between queries")
    fill("generation_config", "vllm", "MLPerf's greedy decoding, not the checkpoint's sampling defaults")
    fill("stream_interval", model.max_new_tokens, "only the first and the last token of a query are reported")
    fill("disable_log_stats", True, "the framework measures by itself")
    fill("skip_tokenizer_init", True, "token ids in, token ids out: text is made after the timed part")
    if model.weights is Weights.dummy:
        fill("load_format", "dummy", "model.weights=dummy")
    if given["max_model_len"] <= model.max_new_tokens:
        raise UserError(
            "backend.engine.max_model_len",
            f"{given['max_model_len']} leaves no room for a prompt beside {model.max_new_tokens} new tokens",
            f"Give up to {longest}, or leave it out",
        )
    if given["max_model_len"] < longest:
        warnings.append(
            f"backend.engine.max_model_len={given['max_model_len']} is below the {longest} tokens that the longest "
            "sample of MLPerf's data set needs"
        )
    if config.hw.device is Device.cuda:
        fill("gpu_memory_utilization", config.backend.gpu_memory_utilization, "backend.gpu_memory_utilization")
        fill("max_num_batched_tokens", *_step(config, given))
        _size(config, given, fill)
        _long_steps(config, given, warnings)
    else:
        fill("max_num_seqs", 256, "as many sequences as a processor keeps busy")
        fill("max_num_batched_tokens", 2048, "enough to keep a processor busy; more only delays first tokens")
        fill("enforce_eager", True, "compiling for a processor takes longer than it saves in a short run")
    return given


def _dtype(config: Config, given: dict[str, Any]) -> str:
    """The type of what is not quantized, by the name that the tables have."""
    return _ALIASES.get(str(given["dtype"]), config.model.dtype if given["dtype"] == "auto" else str(given["dtype"]))


def _step(config: Config, given: dict[str, Any]) -> tuple[int, str]:
    """Tokens of one engine step, and why: what the card is used to, or what the server's bound allows.

    The server's for every load: loads share an engine, and its accuracy.
    """
    large = config.hw.memory_gib >= _LARGE_GIB
    most = 4096 if large else 2048
    bound, peak = bounds_ms(config.model.benchmark, Scenario.server).get("tpot"), _peak(config, given)
    if bound is not None and peak is not None:
        tokens = max(steps.most_tokens(config.model.architecture, peak, bound), given.get("max_num_seqs", 1))
        if tokens < most:
            took = steps.milliseconds(config.model.architecture, peak, tokens)
            return tokens, (
                f"a full step then takes about {took:.0f} ms at {steps.SHARE:.0%} of {peak:g} TFLOP/s, of the "
                f"{bound:g} ms that an output token of a server may take"
            )
    return most, "more fills a card of this size no better" if large else "vLLM's own choice on a card of this size"


def _long_steps(config: Config, given: dict[str, Any], warnings: list[str]) -> None:
    """Warn where full steps take longer than this load's output tokens may."""
    bound, peak, shape = config.scenario.tpot_ms, _peak(config, given), config.model.architecture
    if bound is None or peak is None:
        return
    tokens = int(given["max_num_batched_tokens"])
    took, better = steps.milliseconds(shape, peak, tokens), steps.most_tokens(shape, peak, bound)
    if took > bound and better < tokens:
        warnings.append(
            f"A full step of {tokens:,} tokens takes about {took:.0f} ms on {config.hw.name}, and an output token may "
            f"take {bound:g}: near saturation backend.engine.max_num_batched_tokens={better} keeps it better."
        )


def _peak(config: Config, given: dict[str, Any]) -> float | None:
    """TFLOP/s of one engine for the products of the model."""
    one = steps.peak_tflops(config.hw.peak_tflops, given.get("quantization"), _dtype(config, given))
    return None if one is None else one * int(given.get("tensor_parallel_size", 1))


def _size(config: Config, given: dict[str, Any], fill: Any) -> None:
    """Refuse a model that does not fit the card; derive parallelism and the number of sequences."""
    hw, model = config.hw, config.model
    dtype = _dtype(config, given)
    weight = _bytes("backend.engine.dtype", given.get("quantization"), dtype)
    cache = given.get("kv_cache_dtype", "auto")
    kv = _bytes("backend.engine.dtype", None if cache == "auto" else cache, dtype)
    others = given.get("pipeline_parallel_size", 1) * given.get("data_parallel_size", 1)
    on_one = -(-config.backend.replicas // hw.nodes) if config.backend.replicas else 1  # replicas on the fullest node
    most, heads = max(1, hw.gpus_per_node // on_one // others), model.architecture.heads
    page = int(given.get("block_size", _PAGE))
    mean = config.dataset.mean_prompt_tokens + model.max_new_tokens / 2 + page / 2  # half of the last page is empty

    def sized(degree: int) -> Fit:
        return fit(
            model.architecture,
            memory_gib=hw.memory_gib,
            utilization=float(given["gpu_memory_utilization"]),
            tensor_parallel=degree,
            weight=weight,
            kv=kv,
            batched_tokens=int(given["max_num_batched_tokens"]),
        )

    degrees = [n for n in range(1, most + 1) if heads % n == 0]
    ample = [n for n in degrees if sized(n).kv_tokens >= max(given["max_model_len"], _AMPLE * mean)]
    # Several engines answer more than one engine over as many GPUs, which then also talk to each other.
    alone = min(ample, default=degrees[-1]) if config.backend.replicas is None else degrees[-1]
    degree = given.get("tensor_parallel_size", alone)
    if degree * others > hw.gpus_per_node or heads % degree:
        raise UserError(
            "backend.engine.tensor_parallel_size",
            f"{degree}{f' times {others} of other parallelism' if others > 1 else ''} does not suit {hw.gpus_per_node} "
            f"GPUs a node and {heads} attention heads",
            f"Give a divisor of {heads} up to {most}",
        )
    result = sized(degree)
    if result.kv_tokens < given["max_model_len"]:
        raise UserError("hw", _too_small(config, result, int(given["max_model_len"])), _LARGER)
    if hw.gpus_per_node > 1:
        fill("tensor_parallel_size", degree, f"one engine over {degree} of the node's {hw.gpus_per_node} GPUs")
    sequences = max(1, min(1024, int(result.kv_tokens / mean), int(given["max_num_batched_tokens"])))
    sequences = sequences if sequences < 16 else sequences // 8 * 8
    fill(
        "max_num_seqs",
        sequences,
        f"{result.kv_tokens:,} tokens of context fit beside {result.weight_bytes / GIB:.1f} GiB of weights in "
        f"{result.usable_bytes / GIB:.1f} GiB, at about {mean:.0f} tokens a sequence",
    )


def _bytes(key: str, name: str | None, dtype: str) -> float:
    chosen = name or dtype
    if chosen in ("awq", "gptq", "awq_marlin", "gptq_marlin", "bitsandbytes", "mxfp4", "modelopt_fp4"):
        return 0.5
    for known, size in BYTES.items():
        if chosen == known or chosen.startswith(known):
            return size
    if name is not None:  # a quantization of vLLM's that this table does not know: assume one byte
        return 1.0
    raise UserError(key, f"the size of type '{chosen}' is not known", f"Use one of {', '.join(BYTES)}")


def _too_small(config: Config, result: Fit, longest: int) -> str:
    return (
        f"{config.model.name} does not fit on {config.hw.name}: of {result.usable_bytes / GIB:.1f} GiB a GPU, weights "
        f"take {result.weight_bytes / GIB:.1f} GiB and working space {result.work_bytes / GIB:.1f} GiB, which leaves "
        f"room for {result.kv_tokens:,} tokens of context where one sequence needs {longest:,}"
    )
