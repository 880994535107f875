"""What reads files and streams that others wrote: with seeds, and a call that may raise its own errors only."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_exp.compare.differences import all_facts
from mlperf_exp.compare.runs import LeftOut, parse
from mlperf_exp.data import cnn_dailymail, squad
from mlperf_exp.data.accuracy_log import read_accuracy_log
from mlperf_exp.errors import ExperimentError
from mlperf_exp.importer.__main__ import load as import_results
from mlperf_exp.measure import read_detail_log
from mlperf_exp.monitor import look
from mlperf_exp.report import series
from mlperf_exp.report.view import build
from mlperf_exp.sut.http.answer import Answer, AnswerError
from mlperf_exp.sut.http.sse import SSEParser

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


@dataclass(frozen=True)
class Parser:
    """``call`` reads bytes; any error but ``allowed`` is a finding."""

    name: str
    call: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = (ExperimentError,)


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def call(data: bytes) -> object:
        path = _FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return call


def _stream(data: bytes) -> object:
    """The first byte says where the stream is cut into two reads: no cut may change what comes out."""
    whole = SSEParser().feed(data[1:])
    cut = data[0] % max(1, len(data) - 1) if data else 0
    parser = SSEParser()
    halves = parser.feed(data[1:][:cut]) + parser.feed(data[1:][cut:])
    assert halves == whole, (halves, whole)
    answer = Answer(max_tokens=16)
    for event in whole:
        if event == b"[DONE]":
            break
        answer.add(event)
    return answer.completion(0, None)


def _page(data: bytes) -> object:
    run = parse(data.decode(errors="replace"), "here")
    return all_facts(run), build(run.result)


def _squad(path: Path) -> object:
    return squad.read(path)


def _articles(path: Path) -> object:
    return cnn_dailymail.load(path, None, None, 4096, 1000)


def _sweep(path: Path) -> object:
    return look(path.parent).line() if hasattr(look(path.parent), "line") else None


_EVENT: dict[str, Any] = {"choices": [{"index": 0, "text": "a", "token_ids": [1, 2], "finish_reason": None}]}
_USAGE: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": 2}}
_RESULT: dict[str, Any] = {
    "schema": 1,
    "run": {"id": "a", "name": "b", "status": "finished", "command": ["python"], "overrides": []},
    "plan": {"config": {"model": {"name": "m"}, "hw": {"name": "cpu", "nodes": 1}, "backend": {"name": "vllm"}}},
    "environment": {"packages": {"torch": "2"}, "gpus": [{"name": "H100"}], "variables": {}},
    "verdict": {"valid": False, "reasons": ["Too short."], "warnings": [], "accuracy": {}, "compliance": {}},
    "metrics": {"samples_per_second": 1.5, "ttft_p99_ms": 10.0}, "phases": {"start_s": 1.0, "total_s": 2.0},
    "tests": {"performance": {"loadgen": {"result_validity": "VALID"}, "issued": 1}}, "artifacts": [],
}  # fmt: skip
_LIVE = {"at": 1.0, "phase": "performance", "expected": 10, "elapsed_s": 1.0, "completed": 3, "issued": 4, "errors": 0,
         "tokens": 9, "samples_per_second": 1.0, "tokens_per_second": 2.0, "ttft_p50_ms": None}  # fmt: skip
_SWEEP = {"schema": 1, "status": "running", "jobs": [{"number": 0, "own": {"a": "1"}, "status": "running",
          "outcome": None, "seconds": None, "folder": "0", "attempt": 1, "earlier": False}]}  # fmt: skip
_VLLM = {"backend": "vllm", "completed": 2, "duration": 1.0, "request_throughput": 2.0, "output_throughput": 9.0,
         "total_input_tokens": 10, "total_output_tokens": 20, "mean_ttft_ms": 1.0, "p99_ttft_ms": 2.0,
         "mean_tpot_ms": 1.0, "date": "20260101-000000", "model_id": "m", "num_prompts": 2}  # fmt: skip
_SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "A cat sat.", "qas": [
          {"id": "1", "question": "Who sat?", "answers": [{"text": "A cat", "answer_start": 0}]}]}]}]}  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("openai-stream", _stream, (
            b"\x05data: " + _json(_EVENT) + b"\n\ndata: " + _json(_USAGE) + b"\n\ndata: [DONE]\n\n",
            b"\x01: comment\r\ndata: " + _json({"error": {"message": "no"}}) + b"\r\n\r\n"), (AnswerError,)),
        Parser("loadgen-detail", _file("mlperf_log_detail.txt", lambda path: read_detail_log(path.parent)), (
            b':::MLLOG {"key": "result_validity", "value": "VALID", "metadata": {}}\n',
            b':::MLLOG {"key": "error_runtime", "value": {"a": 1}}\n:::MLLOG {"key": ["x"], "value": 3')),
        Parser("loadgen-accuracy", _file("accuracy.json", read_accuracy_log), (
            b'[\n{"seq_id": 0, "qsl_idx": 1, "data": "0100000002000000", "token_count": 2}\n]\n',)),
        Parser("cnn-dailymail", _file("cnn.json", _articles), (
            _json([{"instruction": "{input}", "input": "An article.", "tok_input": [1, 2, 3], "output": "Short."}]),)),
        Parser("squad", _file("squad.json", _squad), (_json(_SQUAD),)),
        Parser("result-json", _page, (_json(_RESULT),), (LeftOut, ExperimentError)),
        Parser("live-log", _file("run/live.jsonl", lambda path: (look(path.parent), series.read(path.parent))), (
            _json(_LIVE) + b"\n" + _json(_LIVE) + b"\n",)),
        Parser("sweep-json", _file("sweep/sweep.json", _sweep), (_json(_SWEEP),)),
        Parser("importer", _file("foreign.json", lambda path: import_results(path, "auto")), (_json(_VLLM),)),
    )
}  # fmt: skip
