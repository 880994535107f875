"""backend=openai against a real vLLM server of the golden model: the same tokens, over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs_of_commands import run
from transformers import AutoTokenizer

from mlperf_exp.data.accuracy_log import read_accuracy_log
from mlperf_exp.tiny_llama import ARTICLES, ensure, golden_tokens

pytestmark = pytest.mark.vllm

KEY = "canary-5f1c2e9a"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("model") / "llama3_tiny")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with a key; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32",
             "--enforce-eager", "--max-num-batched-tokens", "2048", "--max-model-len", "4096", "--host", "127.0.0.1",
             "--port", str(port), "--no-enable-prefix-caching", "--generation-config", "vllm"],
            stdout=out, stderr=out, start_new_session=True,
            env=os.environ | {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def test_golden_over_http(tmp_path: Path, model: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    done = run(tmp_path / "run", "experiment=quickstart", "backend=openai", f"backend.urls=[{server}]")
    assert done.status == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    outputs = read_accuracy_log(done.folder / "accuracy" / "mlperf_log_accuracy.json")
    articles = json.loads(ARTICLES.read_text())
    assert len(outputs) == len(articles)
    for index, article in enumerate(articles):
        assert outputs[index].tolist() == golden_tokens(tokenizer, article["input"]), index
    assert done.result["metrics"]["ttft_p50_ms"] < done.result["metrics"]["latency_p50_ms"]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_wrong_key_is_told_at_the_start(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    done = run(tmp_path / "run", "model=llama3_tiny", "backend=openai", f"backend.urls=[{server}]", "scenario=server")
    assert done.status == 2
    assert "OPENAI_API_KEY" in done.last_line
