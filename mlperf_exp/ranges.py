"""What each number of a configuration may be; what lies outside is a slip, and is refused by name."""

from __future__ import annotations

import math
from typing import Any

from mlperf_exp.config import Config, Decoder, Device
from mlperf_exp.errors import UserError

MAX_QUERIES = 50_000_000  # LoadGen keeps each in memory
_ABOVE_0 = 1e-9
_ANY = math.inf  # any finite number

# key -> (least, most), both inclusive; keys that a backend does not have, and values left open, are passed over
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "repeats": (1, 1000),
    "scenario.min_query_count": (1, MAX_QUERIES),
    "scenario.samples": (1, MAX_QUERIES),
    "scenario.min_duration_s": (0, 7 * 86400),
    "scenario.expected_latency_ms": (_ABOVE_0, _ANY),
    "scenario.stall_timeout_s": (_ABOVE_0, _ANY),
    "scenario.ttft_ms": (_ABOVE_0, _ANY),
    "scenario.tpot_ms": (_ABOVE_0, _ANY),
    "scenario.latency_ms": (_ABOVE_0, _ANY),
    "scenario.latency_percentile": (_ABOVE_0, 100),
    "scenario.global_batch_size": (1, 2**24),
    "scenario.base_lr": (_ABOVE_0, 1e6),
    "scenario.end_lr": (0, 1e6),
    "scenario.warmup_epochs": (0, 10_000),
    "scenario.decay_epochs": (0, 10_000),
    "scenario.decay_power": (_ABOVE_0, 100),
    "scenario.momentum": (0, 1),
    "scenario.weight_decay": (0, 10),
    "scenario.label_smoothing": (0, 0.999),
    "scenario.crop_min_area": (0.001, 1),
    "scenario.warmup_steps": (0, 10**9),
    "scenario.max_steps": (1, 10**9),
    "scenario.clip_norm": (_ABOVE_0, _ANY),
    "scenario.eval_every_samples": (1, 10**12),
    "scenario.eval_samples": (1, 10**9),
    "scenario.max_epochs": (1, 10_000),
    "scenario.eval_offset": (1, 10_000),
    "scenario.eval_period": (1, 10_000),
    "scenario.target": (_ABOVE_0, 100),
    "scenario.steps": (1, 2**40),
    "dataset.samples": (1, MAX_QUERIES),
    "dataset.mean_prompt_tokens": (1, _ANY),
    "dataset.sigma_prompt_tokens": (0, 10),
    "model.sequence_length": (2, 2**20),
    "model.max_new_tokens": (1, 2**31),
    "model.min_new_tokens": (0, 2**31),
    "model.max_prompt_tokens": (1, 2**31),
    "model.performance_samples": (1, MAX_QUERIES),
    "hw.nodes": (1, 2**20),
    "hw.gpus_per_node": (0, 2**10),
    "hw.memory_gib": (_ABOVE_0, _ANY),
    "hw.network_gbit_s": (_ABOVE_0, _ANY),
    "tracking.interval_s": (_ABOVE_0, _ANY),
    "tracking.timeout_s": (_ABOVE_0, _ANY),
    "telemetry.interval_s": (0.05, 60),
    "ray.cpus_per_replica": (0, 2**12),
    "ray.timeout_s": (_ABOVE_0, _ANY),
    "ray.heartbeat_timeout_s": (0.5, 3600),
    "backend.replicas": (1, 2**16),
    "backend.replica_queries": (1, 2**31),
    "backend.gpu_memory_utilization": (_ABOVE_0, 1),
    "backend.warmup_queries": (0, MAX_QUERIES),
    "backend.start_timeout_s": (_ABOVE_0, _ANY),
    "backend.connections": (1, 2**16),
    "backend.connect_timeout_s": (_ABOVE_0, _ANY),
    "backend.request_timeout_s": (_ABOVE_0, _ANY),
    "backend.idle_timeout_s": (_ABOVE_0, _ANY),
    "model.classes": (2, 2**20),
    "model.image_size": (1, 4096),
    "model.resize": (1, 8192),
    "model.max_tokens": (8, 2**15),
    "model.stride": (1, 2**15),
    "model.max_question_tokens": (1, 2**15),
    "model.max_answer_tokens": (1, 2**15),
    "dataset.mean_tokens": (8, 2**15),
    "dataset.sigma_tokens": (0, 3),
    "backend.max_batch": (1, 2**20),
    "backend.max_wait_ms": (0, 60_000),
    "backend.in_flight": (1, 16),
    "backend.threads": (1, 1024),
    "backend.warmup_batches": (1, 1000),
    "backend.processes": (1, 1024),
    "backend.micro_batch": (1, 2**20),
    "backend.workers": (0, 1024),
    "backend.warmup_steps": (0, 1000),
    "backend.log_every_steps": (1, 10**6),
    "backend.checkpoint_every_s": (_ABOVE_0, _ANY),
    "backend.checkpoints_kept": (1, 1000),
    "backend.ttft_ms": (0, _ANY),
    "backend.tpot_ms": (0, _ANY),
    "backend.sigma": (0, 10),
    "backend.output_tokens": (1, 2**20),
    "backend.concurrency": (1, 2**20),
    "backend.error_rate": (0, 1),
    "backend.fail_after": (0, _ANY),
    "backend.hang_after": (0, _ANY),
}


def check_numbers(config: Config) -> None:
    """Refuse numbers out of range, and those that do not go together.

    Raises:
        UserError: naming the key and its range.
    """
    for key, (least, most) in RANGES.items():
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name, None)
        if isinstance(value, int | float) and not (math.isfinite(value) and least <= value <= most):
            low = "above 0" if least == _ABOVE_0 else f"of at least {least:,.12g}"
            high = "" if most == _ANY else f" and at most {most:,.12g}"
            raise UserError(key, f"{value:g} is out of range", f"Give a number {low}{high}")
    if config.hw.device is Device.cuda and config.hw.gpus_per_node < 1:
        raise UserError("hw.gpus_per_node", "is 0 on a machine with GPUs", "Give at least 1, or choose hw=cpu")
    if isinstance(config.model, Decoder) and config.model.min_new_tokens > config.model.max_new_tokens:
        raise UserError("model.min_new_tokens", "is above model.max_new_tokens", "Give at most model.max_new_tokens")
