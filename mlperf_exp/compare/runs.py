"""``result.json`` -> a run as it is compared. Nothing is trusted: it may be half a file, or of another version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlperf_exp.layout import PARALLEL
from mlperf_exp.report.text import number, plain
from mlperf_exp.report.view import items, part

SCHEMA = 1
# What says how a run is shown or kept, not what it measures.
_NO_PART_OF_A_PLAN = ("name", "tracking", "telemetry", "progress", "fail_on_invalid", "expected", "repeats")
_LONGEST = 300  # characters of one value


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``facts`` are flat texts: ``scenario.target_qps``, ``engine.max_num_seqs``, ``package vllm``."""

    id: str
    name: str
    where: str  # its folder as the user named it, or MLflow's id
    folder: Path | None
    status: str
    valid: bool
    reasons: tuple[str, ...]
    metrics: dict[str, float]
    phases: dict[str, float]
    facts: dict[str, str]
    config: dict[str, Any] = field(repr=False)
    result: Mapping[str, Any] = field(repr=False)
    baseline: bool = False

    @property
    def model(self) -> str:
        """The model's name."""
        return self.facts.get("model.name", "a model without a name")

    @property
    def measured(self) -> bool:
        """Whether a performance test came to figures."""
        return "samples_per_second" in self.metrics or "train_samples_per_second" in self.metrics

    @property
    def plan(self) -> str:
        """Equal for runs of equal configuration on equal hardware and software: repeats of one another."""
        kept = {k: v for k, v in self.facts.items() if k != "host name"}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def accelerators(self) -> int:
        """How many accelerators the run was planned for; a machine without any counts as one."""
        hw, backend = part(self.config, "hw"), part(self.config, "backend")
        replicas = number(backend.get("replicas"))
        if replicas is None:
            return max(1, int((number(hw.get("nodes")) or 1) * (number(hw.get("gpus_per_node")) or 0)))
        engine = part(self.result, "plan", "engine")
        each = 1.0
        for name in PARALLEL if hw.get("device") == "cuda" else ():
            each *= number(engine.get(name)) or 1
        return max(1, int(replicas * each))


class LeftOut(Exception):
    """Why something is not compared, in one sentence."""


def load(path: Path, where: str) -> Run:
    """The run in a folder.

    Raises:
        LeftOut: it holds no result that can be compared.
    """
    try:
        text = (path / "result.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LeftOut(
            "it has no result.json: the run is still going on, or it was killed before it could write one"
        ) from None
    except (OSError, ValueError) as error:
        raise LeftOut(f"its result.json cannot be read ({error})") from None
    return parse(text, where, path)


def parse(text: str, where: str, folder: Path | None = None) -> Run:
    """The run that a ``result.json`` describes.

    Raises:
        LeftOut: it is no whole JSON, or of another schema.
    """
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        raise LeftOut("its result.json is no whole JSON: it was cut off while it was written or copied") from None
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        said = "names no schema" if schema is None else f"is of schema {plain(schema, 20)}"
        raise LeftOut(f"its result.json {said}, and this version compares schema {SCHEMA}")
    run, verdict, config = part(result, "run"), part(result, "verdict"), part(result, "plan", "config")
    if not config:
        raise LeftOut("its result.json holds no configuration")
    return Run(
        id=plain(run.get("id") or where, 200),
        name=plain(run.get("name") or run.get("id") or where, 200),
        where=where,
        folder=folder,
        status=plain(run.get("status") or "unknown", 40),
        valid=verdict.get("valid") is True and run.get("status") == "finished",
        reasons=tuple(plain(reason, 500) for reason in [*items(run.get("error")), *items(verdict.get("reasons"))]),
        metrics=_numbers(result.get("metrics")),
        phases=_numbers(result.get("phases")),
        facts=facts(result),
        config=config,
        result=result,
    )


def _numbers(value: Any) -> dict[str, float]:
    return {str(k): x for k, v in part({"v": value}, "v").items() if (x := number(v)) is not None}


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """All that can differ between two runs before they are measured, flat and as text."""
    config = {k: v for k, v in part(result, "plan", "config").items() if k not in _NO_PART_OF_A_PLAN}
    found = dict(_flat(config))
    found |= {f"engine.{k}": v for k, v in _flat(part(result, "plan", "engine"))}
    environment = part(result, "environment")
    found |= {f"package {k}": v for k, v in _flat(part(environment, "packages"))}
    found |= {f"variable {k}": v for k, v in _flat(part(environment, "variables"))}
    gpus = [part({"g": gpu}, "g").get("name") or gpu for gpu in items(environment.get("gpus"))]
    named = {
        "driver": environment.get("driver"),
        "GPUs": ", ".join(plain(gpu, 80) for gpu in gpus) or None,
        "CPU": environment.get("cpu"),
        "CPUs": environment.get("cpus"),
        "Python": environment.get("python"),
        "platform": environment.get("platform"),
        "git commit": environment.get("git_commit"),
        "host name": environment.get("hostname"),
    }
    return found | {key: plain(value, _LONGEST) for key, value in named.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        key = f"{prefix}{plain(name, 100)}"
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found.append((key, plain(text, _LONGEST)))
    return found
