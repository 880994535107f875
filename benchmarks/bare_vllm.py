"""vLLM alone, to stand beside the framework: ``LLM.generate`` over prompts of token ids, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def generate(
    folder: Path,
    model: Path,
    engine: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    repeats: int = 1,
    profiled: int = 0,
    timeout: float | None = None,
) -> dict[str, Any]:
    """All prompts at once, ``repeats`` times, 128 tokens each; ``profiled`` of them once more under vLLM's profiler.

    Args:
        folder: where the job, its log and its answer go.
        model: a checkpoint's folder, or one with a ``config.json`` alone.
        engine: arguments of ``vllm.LLM``.
        prompts: token ids.
        repeats: the fastest counts.
        profiled: how many prompts.
        timeout: seconds.

    Returns:
        ``start_s``, ``tokens``, ``prompt_tokens``, ``seconds`` of each time and ``tokens_per_second``; or ``error``.
    """
    from mlperf_exp.sut.vllm import stop_tokens, triton_cache

    job = {"model": str(model.absolute()), "engine": engine, "stop": stop_tokens(model), "prompts": prompts,
           "repeats": repeats, "profiled": profiled}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    with (folder / "bare.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, __file__, str(folder / "job.json"), str(folder / "answer.json")],
            stdout=log, stderr=log, timeout=timeout, check=False,
            env={"VLLM_CPU_KVCACHE_SPACE": "1", "TRITON_CACHE_DIR": str(triton_cache())} | os.environ
            | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
        )  # fmt: skip
    if done.returncode:
        return {"error": (folder / "bare.log").read_text()[-3000:]}
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    engine = LLM(model=job["model"], **job["engine"])
    started = time.perf_counter() - began
    params = SamplingParams(temperature=0.0, max_tokens=128, min_tokens=1, stop_token_ids=job["stop"], detokenize=False)
    prompts: Any = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    engine.generate(sorted(prompts, key=lambda p: len(p["prompt_token_ids"]))[-8:], params, use_tqdm=False)
    seconds, tokens = [], 0
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        answers = engine.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    if job["profiled"]:
        engine.start_profile()
        engine.generate(prompts[: job["profiled"]], params, use_tqdm=False)
        engine.stop_profile()
    found = {"start_s": started, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / min(seconds),
             "prompt_tokens": sum(map(len, job["prompts"]))}  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
