"""Attention for vLLM in two launches: the kernel's answers, the slices of a step, and where it is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from mlperf_exp.sut import attention

KERNEL = Path(__file__).with_name("attention_kernels.py")
SPLIT = Path(__file__).with_name("split_steps.py")  # tests too, of vLLM's own classes


def kernel(what: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(KERNEL), what], env=os.environ | {"TRITON_INTERPRET": "0" if what == "compiles" else "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_kernel_answers_as_plain_attention_does() -> None:
    rows = kernel("answers")
    assert [row[0] for row in rows] == [16, 64, 128, 192, 128], "pages that a tile divides, and smaller ones"
    assert all(row[-1] < 0.03 for row in rows), rows  # bfloat16 has 8 bits: numbers up to 4


def test_keys_and_values_are_written_to_the_bit_and_nothing_beside_them() -> None:
    rows = kernel("writes")
    assert {row[0] for row in rows} == {"torch.float8_e4m3fn", "torch.bfloat16"} and len(rows) == 6
    assert all(row[-1] == 0 for row in rows), rows


def test_what_it_compiles_to_reads_values_turned_around_and_never_by_the_byte() -> None:
    for page, count in kernel("compiles").items():
        assert count[".trans"] >= 16 and count["cvt.rn.f16x2"] >= 128, (page, count)
        assert count["ld.shared.b8"] == count["ld.shared.u8"] == 0, (page, count)


def test_a_step_is_cut_into_its_slices() -> None:
    """In a process of its own: importing vLLM changes the environment of all that comes after."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(SPLIT)],
        capture_output=True, text=True, timeout=600, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0 and "26 passed" in done.stdout, done.stdout[-5000:] + done.stderr[-1000:]


def test_it_is_installed_as_vllms_plugin_and_leaves_another_one_alone() -> None:
    (point,) = entry_points(group=attention.GROUP, name=attention.NAME)
    assert point.load() is attention.register
    code = """
from mlperf_exp.sut.attention import register
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
register(); register()
print(AttentionBackendEnum.CUSTOM.get_class().get_builder_cls().__name__)
AttentionBackendEnum.CUSTOM.clear_override()
register_backend(AttentionBackendEnum.CUSTOM, "elsewhere.Own")
register()
print(AttentionBackendEnum.CUSTOM.get_path())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-2:] == ["SplitBuilder", "elsewhere.Own"]


CHOSEN = {"block_size": 128, "attention_config": {"backend": "CUSTOM", "flash_attn_version": 3}}


def test_an_engine_that_does_not_ask_for_it_is_left_alone() -> None:
    for engine in ({}, {"attention_config": {"backend": "TRITON_ATTN"}}, {"attention_config": None}):
        assert attention.settle(engine, "0.24.0") == (engine, ())


def test_it_is_kept_with_a_vllm_that_it_was_tried_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert attention.settle(CHOSEN, "0.32.0") == (CHOSEN, ())
    monkeypatch.setenv("VLLM_PLUGINS", "other,mlperf_exp")
    assert attention.settle(CHOSEN, "0.32.1+cu130") == (CHOSEN, ())


@pytest.mark.parametrize(
    ("version", "plugins", "installed", "says"),
    [
        ("0.24.0", None, True, "with vLLM 0.32.x only, and this is 0.24.0"),
        ("0.320.0", None, True, "this is 0.320.0"),
        ("0.32.0", "other", True, "VLLM_PLUGINS does not name mlperf_exp"),
        ("0.32.0", "", True, "VLLM_PLUGINS does not name mlperf_exp"),
        ("0.32.0", None, False, "not installed (pip install -e .)"),
    ],
)
def test_elsewhere_it_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, version: str, plugins: str | None, installed: bool, says: str
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    if not installed:
        monkeypatch.setattr(attention, "NAME", "nothing_of_this_name")
    engine, (warning,) = attention.settle(CHOSEN, version)
    assert engine == {"block_size": 128, "attention_config": {"flash_attn_version": 3}}
    assert warning.startswith("backend.engine.attention_config.backend=CUSTOM was left out: ") and says in warning
    assert CHOSEN["attention_config"]["backend"] == "CUSTOM", "the plan stays as it was"  # type: ignore[index]
