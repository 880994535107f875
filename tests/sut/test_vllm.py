"""What vLLM is started with, beside the engine's arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlperf_exp.sut.vllm import triton_cache


def test_kernels_are_looked_for_where_triton_itself_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    knobs = pytest.importorskip("triton.knobs", reason="no Triton in this installation")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    for home in (None, str(tmp_path)):
        monkeypatch.delenv("TRITON_HOME", raising=False)
        if home is not None:
            monkeypatch.setenv("TRITON_HOME", home)
        assert Path(knobs.cache_knobs().dir) == triton_cache()


def test_an_engine_keeps_one_cache_of_kernels_whether_it_compiles_or_not() -> None:
    """vLLM leaves the one that is named alone."""
    code = """
import os, tempfile
from types import SimpleNamespace
from mlperf_exp.sut.vllm import Vllm, triton_cache
os.environ.pop("TRITON_CACHE_DIR", None)
Vllm._set_environment(SimpleNamespace(_plan=SimpleNamespace(config=SimpleNamespace(hw=SimpleNamespace(device=None)))))
from vllm.compilation.compiler_interface import InductorAdaptor
with tempfile.TemporaryDirectory() as folder:
    InductorAdaptor().initialize_cache(folder)
print(os.environ["TRITON_CACHE_DIR"] == str(triton_cache()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "True"
