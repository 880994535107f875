"""The framework over bare vLLM, offline, on the same prompts and engine arguments, each in a process of its own.

    python benchmarks/vllm_offline.py [--copies 8] [--repeats 3]

Bare is ``vllm.LLM.generate`` on all prompts at once; the framework is the whole command in the offline scenario, its
rate as LoadGen reports it. The two are interleaved; the ratio is of the medians. Prints JSON. Bar: at least 0.97.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BARE = """
import json, sys, time
job = json.load(open(sys.argv[1]))
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    engine = LLM(model=job["model"], **job["engine"])
    params = SamplingParams(temperature=0.0, max_tokens=128, min_tokens=1, stop_token_ids=job["stop"], detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    engine.generate(sorted(prompts, key=lambda p: len(p["prompt_token_ids"]))[-8:], params, use_tqdm=False)
    began = time.perf_counter()
    answers = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    json.dump({"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}, open(sys.argv[2], "w"))
"""


def framework(folder: Path, copies: int, samples: int) -> dict[str, Any]:
    """One run of the command; returns its record."""
    run = folder / "run"
    subprocess.run(
        [sys.executable, "-m", "mlperf_exp", f"hydra.run.dir={run}", "experiment=quickstart", "scenario=offline",
         "scenario.mode=performance", f"scenario.min_query_count={copies * samples}", "scenario.min_duration_s=0",
         "tracking.enabled=false", "progress=false"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def bare(folder: Path, engine: dict[str, Any], copies: int) -> dict[str, Any]:
    """The same prompts through ``LLM.generate``."""
    from mlperf_exp.data import ARTICLES, cnn_dailymail
    from mlperf_exp.kinds.decoder import tokenizer
    from mlperf_exp.sut.vllm import stop_tokens
    from mlperf_exp.tiny_llama import ensure

    model = ensure(Path("outputs") / "models" / "llama3_tiny")
    samples = cnn_dailymail.load(ARTICLES, tokenizer(model), None, 4096)
    job = {
        "model": str(model.absolute()),
        "engine": engine,
        "stop": stop_tokens(model),
        "prompts": [list(sample.tokens) for _ in range(copies) for sample in samples],
    }
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "bare.py").write_text(BARE)
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    with (folder / "bare.log").open("w") as log:
        subprocess.run(
            [sys.executable, str(folder / "bare.py"), str(folder / "job.json"), str(folder / "answer.json")],
            check=True, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--copies", type=int, default=8, help="how often each of the 72 articles is asked for")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as name:
            result = framework(Path(name), options.copies, 72)
            ours.append(result["metrics"]["tokens_per_second"])
            theirs.append(bare(Path(name), result["plan"]["engine"], options.copies)["tokens_per_second"])
    print(
        json.dumps(
            {
                "cpus": os.cpu_count(),
                "load": os.getloadavg(),
                "queries": options.copies * 72,
                "framework_tokens_per_second": ours,
                "bare_tokens_per_second": theirs,
                "framework_over_bare": statistics.median(ours) / statistics.median(theirs),
                "pairs": [a / b for a, b in zip(ours, theirs, strict=True)],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
