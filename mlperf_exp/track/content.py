"""What of a run goes to MLflow, as plain values: ``result.json`` to parameters, metrics, tags, files and the data set.

Light on purpose (no MLflow): the measured process uses it too. Every string passes ``redact`` and is cut to MLflow's
limits (``mlflow.utils.validation``: keys 250, parameter values 6,000, tag values 8,000, data set digests 36).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mlperf_exp.credentials import redact

MAX_KEY, MAX_PARAM, MAX_TAG, MAX_DIGEST = 250, 6000, 8000, 36

RUN_ID_TAG = "mlperf_exp.run_id"

# Shown in the order of interest; hidden files stay behind, since Hydra's own copies are not redacted.
_FILES = (
    "report.html",
    "report.md",
    "result.json",
    "config.yaml",
    "live.jsonl",
    "telemetry.jsonl",
    "plots/*",
    "performance/*",
    "accuracy/*",
)
_SECRET_KEY = re.compile(r"(^|[._])(password|passwd|secret|token|api_key|access_key)$", re.IGNORECASE)
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")


class Point(NamedTuple):
    """One value of a metric; ``at_ms`` is Unix time in milliseconds."""

    key: str
    value: float
    at_ms: int
    step: int


class DataSource(NamedTuple):
    """The data set that a run read: its name, where it is, and a digest of it."""

    name: str
    digest: str
    source: str


def clip(text: str, limit: int) -> str:
    """``text`` of at most ``limit`` characters, its end marked where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as MLflow parameters: keys joined by dots, values as text, lists as JSON, None as ``null``."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if _SECRET_KEY.search(key) and text != "null":
            text = "***"
        flat[clip(_NOT_IN_KEYS.sub("_", key), MAX_KEY)] = clip(redact(text), MAX_PARAM)
    return flat


def params(result: Mapping[str, Any]) -> dict[str, str]:
    """The resolved configuration, and under ``engine.`` the engine's effective arguments."""
    plan = result.get("plan") or {}
    return flatten(plan.get("config") or {}) | flatten(plan.get("engine") or {}, "engine.")


def tags(result: Mapping[str, Any]) -> dict[str, str]:
    """What runs are searched and sorted by; a tag whose value is unknown is absent."""
    run, verdict = result.get("run") or {}, result.get("verdict") or {}
    environment = result.get("environment") or {}
    config = (result.get("plan") or {}).get("config") or {}
    accuracy = verdict.get("accuracy") or {}
    passed = {True: "passed", False: "failed"}.get(accuracy.get("passed"), "not judged")  # type: ignore[arg-type]
    known = {
        RUN_ID_TAG: run.get("id"),
        "status": run.get("status"),
        "error": run.get("error"),
        "foreign": run.get("foreign"),
        "verdict": "valid" if verdict.get("valid") else "invalid",
        "verdict_reasons": " ".join(verdict.get("reasons") or ()),
        "accuracy": passed if accuracy.get("measured") else "not measured",
        "overrides": " ".join(run.get("overrides") or ()),
        "engine_hash": run.get("engine_hash"),
        "plan_hash": run.get("plan_hash"),
        "git_commit": environment.get("git_commit"),
        "hostname": environment.get("hostname"),
        "division": config.get("division"),
        **{group: _name(config.get(group)) for group in ("model", "dataset", "hw", "scenario", "backend")},
        "mlflow.source.name": " ".join(run.get("command") or ()),
        "mlflow.source.git.commit": environment.get("git_commit"),
        "mlflow.note.content": _note(verdict),
    }
    return clean_tags({key: value for key, value in known.items() if value})


def clean_tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags within MLflow's limits, redacted."""
    return {
        clip(_NOT_IN_KEYS.sub("_", key), MAX_KEY): clip(redact(str(value)), MAX_TAG) for key, value in values.items()
    }


def points(result: Mapping[str, Any]) -> list[Point]:
    """Every metric under its one name, and the phases' seconds as ``phase/...``, at the time of the run's end."""
    at_ms = ended_ms(result)
    phases = {f"phase/{key}": value for key, value in (result.get("phases") or {}).items()}
    values = {**(result.get("metrics") or {}), **phases}
    found = [Point(_NOT_IN_KEYS.sub("_", k), float(v), at_ms, 0) for k, v in values.items() if _is_number(v)]
    for key, repeated in ((result.get("repeats") or {}).get("metrics") or {}).items():
        ends = {f"ci95/{key}/{end}": repeated.get(end) for end in ("low", "high")}
        found += [Point(name, float(value), at_ms, 0) for name, value in ends.items() if _is_number(value)]
        found += [Point(f"repeat/{key}", float(v), at_ms, i) for i, v in enumerate(repeated["values"], 1)]
    return found


def ended_ms(result: Mapping[str, Any]) -> int:
    """When the run ended, Unix milliseconds; 0 where the result does not say it."""
    ended = (result.get("run") or {}).get("ended_at")
    return int(unix_seconds(ended) * 1000) if ended else 0


def unix_seconds(moment: str) -> float:
    """ISO 8601, UTC where it names no zone, to Unix seconds."""
    parsed = datetime.fromisoformat(moment)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def live_points(line: Mapping[str, Any], first_at: float) -> list[Point]:
    """One line of ``live.jsonl`` as ``live/...``; the step is milliseconds since the file's first line."""
    at = float(line["at"])
    step = max(0, round((at - first_at) * 1000))
    skip = {"at", "phase", "expected", "elapsed_s"}
    return [
        Point(f"live/{k}", float(v), round(at * 1000), step) for k, v in line.items() if k not in skip and _is_number(v)
    ]


def files(run_dir: Path, result: Mapping[str, Any]) -> list[Path]:
    """The files to keep in MLflow, relative to ``run_dir``: those known by name, and those that the result lists."""
    found = dict.fromkeys(p.relative_to(run_dir) for pattern in _FILES for p in sorted(run_dir.glob(pattern)))
    found |= dict.fromkeys(Path(entry["path"]) for entry in result.get("artifacts") or ())
    return [
        path
        for path in found
        if (run_dir / path).is_file()
        and (run_dir / path).resolve().is_relative_to(run_dir.resolve())
        and not any(part.startswith(".") for part in path.parts)
        and path.parts[:2] != ("train", "checkpoints")  # large, and of use on the machine only
    ]


def data_source(result: Mapping[str, Any]) -> DataSource | None:
    """The run's data set; the digest is the file's SHA-256, or its configuration's where there is no one file."""
    dataset = ((result.get("plan") or {}).get("config") or {}).get("dataset") or {}
    if not dataset.get("name"):
        return None
    path = dataset.get("path")
    if path and Path(path).is_file():
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        digest = hashlib.sha256(json.dumps(dataset, sort_keys=True, default=str).encode()).hexdigest()
    return DataSource(str(dataset["name"]), digest[:MAX_DIGEST], redact(str(path or dataset["name"])))


def chunks(values: Iterable[Any], size: int) -> list[list[Any]]:
    """``values`` in lists of at most ``size``."""
    whole = list(values)
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def _name(group: Any) -> Any:
    return group.get("name") if isinstance(group, Mapping) else group


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _note(verdict: Mapping[str, Any]) -> str:
    """The description that MLflow's page of a run shows, in Markdown."""
    reasons: Sequence[str] = verdict.get("reasons") or ()
    head = "**Valid** by MLPerf's rules." if verdict.get("valid") else "**Not valid** by MLPerf's rules:"
    return "\n".join([head, "", *(f"- {reason}" for reason in reasons)]).strip()
