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

from bare_vllm import generate


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
    from mlperf_exp.tiny_llama import ensure

    model = ensure(Path("outputs") / "models" / "llama3_tiny")
    samples = cnn_dailymail.load(ARTICLES, tokenizer(model), None, 4096)
    answer = generate(folder, model, engine, [list(sample.tokens) for _ in range(copies) for sample in samples])
    if "error" in answer:
        raise SystemExit(answer["error"])
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
