"""Writes the files of one result: logs, settings, accuracy with its hash, compliance folders, how it was made."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_exp.compliance.logs import ACCURACY, DETAIL, SUMMARY
from mlperf_exp.submission.rules import BENCHMARKS, MAX_ACCURACY_LOG_BYTES, MEASUREMENTS, SHOWN_BYTES
from mlperf_exp.submission.sources import Source

_QUANTIZED = {"fp8": "fp8", "awq": "int4", "gptq": "int4", "mxfp4": "fp4", "modelopt": "fp8", "modelopt_fp4": "fp4"}
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


def write_result(folder: Path, performance: Source, accuracy: Source, given: Mapping[str, Any]) -> None:
    """One scenario's folder.

    Args:
        folder: ``.../results/SYSTEM/BENCHMARK/SCENARIO``, made here.
        performance: the run whose speed counts; its compliance tests go along.
        accuracy: the run whose accuracy counts, which may be the same.
        given: ``measurements`` as a person has them, over those derived from the engine's settings.
    """
    run_1 = folder / "performance" / "run_1"
    run_1.mkdir(parents=True)
    for name in (SUMMARY, DETAIL):
        shutil.copyfile(performance.folder / "performance" / name, run_1 / name)
    if accuracy.has("accuracy"):
        write_accuracy(folder / "accuracy", accuracy.folder / "accuracy", (SUMMARY, DETAIL))
    for name in BENCHMARKS[performance.benchmark].tests:
        source = performance.folder / "compliance" / name
        if source.is_dir():
            write_compliance(folder / name, source, name)
    shutil.copyfile(performance.folder / "performance" / "user.conf", folder / "user.conf")
    _write(folder / "measurements.json", json.dumps(measurements(performance) | dict(given), indent=2) + "\n")
    _write(folder / "README.md", readme(performance, accuracy))


def write_accuracy(folder: Path, source: Path, logs: tuple[str, ...] = ()) -> None:
    """``accuracy.txt`` with the hash of the whole accuracy log, and the log cut to its two ends."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in logs:
        shutil.copyfile(source / name, folder / name)
    whole = (source / ACCURACY).read_bytes()
    text = (source / "accuracy.txt").read_text().strip() if (source / "accuracy.txt").exists() else ""
    _write(folder / "accuracy.txt", f"{text}\n\nhash={hashlib.sha256(whole).hexdigest()}\n".lstrip())
    (folder / ACCURACY).write_bytes(truncated(whole))


def truncated(log: bytes) -> bytes:
    """The log's two ends where it is over 10 KiB, as MLCommons' own tool cuts it; else the log."""
    if len(log) <= MAX_ACCURACY_LOG_BYTES:
        return log
    return log[:SHOWN_BYTES] + b"\n\n...\n\n" + log[-SHOWN_BYTES:]


def write_compliance(folder: Path, source: Path, test: str) -> None:
    """A compliance test's folder: what was verified, and the logs that the checker asks for."""
    folder.mkdir()
    for path in sorted(source.glob("verify_*.txt")):
        shutil.copyfile(path, folder / path.name)
    if test in ("TEST01", "TEST04"):
        run_1 = folder / "performance" / "run_1"
        run_1.mkdir(parents=True)
        for name in (SUMMARY, DETAIL):
            shutil.copyfile(source / name, run_1 / name)
    if test == "TEST01":
        write_accuracy(folder / "accuracy", source)
        for name in ("baseline_accuracy.txt", "compliance_accuracy.txt"):
            if (source / name).exists():
                shutil.copyfile(source / name, folder / "accuracy" / name)
    if test == "TEST06":
        (folder / "accuracy").mkdir()
        shutil.copyfile(source / ACCURACY, folder / "accuracy" / ACCURACY)


def measurements(source: Source) -> dict[str, str]:
    """``measurements.json`` by the engine's settings: types, weights, and what was done to them."""
    engine, model = source.result["plan"].get("engine") or {}, source.config["model"]
    derived = {item["key"]: item["value"] for item in source.result["plan"].get("derived") or ()}
    dtype = str(engine.get("dtype") or derived.get("model.dtype") or model["dtype"])
    own = _TYPES.get(dtype, dtype)
    quantization = str(engine.get("quantization") or "")
    weights = next((kind for name, kind in _QUANTIZED.items() if quantization.startswith(name)), quantization) or own
    values = (
        BENCHMARKS[source.benchmark].input_data_types,
        "No",
        str(model["path"]),
        weights,
        f"quantization to {weights} ({quantization})" if quantization else "none",
    )
    return dict(zip(MEASUREMENTS, values, strict=True))


def readme(performance: Source, accuracy: Source) -> str:
    """How the result was made: the command, the engine, the packages."""
    environment, run = performance.result["environment"], performance.result["run"]
    engine = performance.result["plan"].get("engine") or {}
    overrides = shlex.join([str(word) for word in run["overrides"]])
    made_by = f"mlperf_exp {environment['packages'].get('mlperf-exp', '')} (commit {environment['git_commit']})"
    lines = [
        f"# {performance.model}, {performance.scenario}",
        "",
        f"Made by {made_by}, run `{run['id']}` of {run['started_at']}:",
        "",
        f"    python -m mlperf_exp {overrides}".rstrip(),
        "",
    ]
    if accuracy is not performance:
        lent = accuracy.result["run"]["id"]
        lines += [f"Its accuracy was measured on the same engine ({performance.engine_hash}) by run `{lent}`.", ""]
    lines += ["Engine arguments:", "", *(f"- `{key}`: `{value}`" for key, value in sorted(engine.items())), ""]
    lines += ["Packages:", "", *(f"- {key} {value}" for key, value in sorted(environment["packages"].items())), ""]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
